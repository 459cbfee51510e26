"""Which norms the kernel computes, decided on fake tensors of a GPU."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from flatten_det.attention import gpu, layer_norm


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch):
    """Tensors of a GPU of compute capability 9.0, without values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu, "unavailable_reason", lambda: None)
    layer_norm._device_serves.cache_clear()
    with FakeTensorMode():
        yield
    layer_norm._device_serves.cache_clear()


def tokens(C: int = 64, dtype: torch.dtype = torch.float32, B: int = 2) -> torch.Tensor:
    return torch.empty(B, 6, C, dtype=dtype, device="cuda")


def norm(C: int = 64, **options) -> nn.LayerNorm:
    return nn.LayerNorm(C, device="cuda", **options)


def with_hook() -> nn.LayerNorm:
    observed = norm()
    observed.register_full_backward_hook(lambda *_: None)
    return observed


class OwnNorm(nn.LayerNorm):
    """What a user may put in the place of a norm."""


@pytest.mark.parametrize(
    "case",
    [
        lambda: (tokens(), None, norm()),
        lambda: (tokens(), tokens(), norm()),
        lambda: (tokens(24, torch.bfloat16), None, norm(24, dtype=torch.bfloat16)),
    ],
)
def test_what_the_kernel_computes(monkeypatch, case):
    assert layer_norm._kernel_serves(*case())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    layer_norm._device_serves.cache_clear()
    assert not layer_norm._kernel_serves(*case())
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "unavailable_reason", lambda: "no Triton")
    layer_norm._device_serves.cache_clear()
    assert not layer_norm._kernel_serves(*case())


@pytest.mark.parametrize(
    "case",
    [
        lambda: (tokens(), None, OwnNorm(64, device="cuda")),
        lambda: (tokens(), None, norm(bias=False)),
        lambda: (tokens(), None, nn.Identity()),
        lambda: (tokens(), None, with_hook()),
        lambda: (tokens(36), None, norm(36)),
        lambda: (tokens(2048), None, norm(2048)),
        lambda: (tokens(), None, nn.LayerNorm((6, 64), device="cuda")),
        lambda: (tokens(), tokens(B=1), norm()),
        lambda: (tokens(B=0), None, norm()),
        lambda: (tokens(), None, nn.LayerNorm(64)),
        lambda: (tokens(dtype=torch.float64), None, norm(dtype=torch.float64)),
        lambda: (tokens(), tokens(dtype=torch.float64), norm()),
        lambda: (tokens(dtype=torch.bfloat16), None, norm()),
        lambda: (torch.empty(2, 6, 64), None, nn.LayerNorm(64)),
    ],
)
def test_what_is_left_to_torch(case):
    assert not layer_norm._kernel_serves(*case())


@pytest.mark.parametrize("grad", [False, True])
def test_dtypes_are_those_of_torch_but_for_products(monkeypatch, grad):
    # What torch.autocast does, which without a GPU refuses to.
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        x, branch = tokens(), tokens(dtype=torch.bfloat16)
        with torch.set_grad_enabled(grad):
            assert layer_norm.layer_norm(branch, norm()).dtype == torch.float32
            assert layer_norm.layer_norm(x, norm(), for_product=True).dtype == torch.bfloat16
            y, n = layer_norm.add_layer_norm(x, branch, norm())
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert (y.dtype, n.dtype) == (torch.float32, torch.bfloat16)
    assert y.requires_grad == n.requires_grad == grad
