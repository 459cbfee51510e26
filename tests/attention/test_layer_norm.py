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
    layer_norm._capability_obstacle.cache_clear()
    with FakeTensorMode():
        yield
    layer_norm._capability_obstacle.cache_clear()


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
    ("case", "reason"),
    [
        (lambda: (tokens(), None, norm()), None),
        (lambda: (tokens(), tokens(), norm()), None),
        (lambda: (tokens(24, torch.bfloat16), None, norm(24, dtype=torch.bfloat16)), None),
        (lambda: (tokens(), None, OwnNorm(64, device="cuda")), "no plain LayerNorm"),
        (lambda: (tokens(), None, norm(bias=False)), "no plain LayerNorm"),
        (lambda: (tokens(), None, nn.Identity()), "no plain LayerNorm"),
        (lambda: (tokens(), None, with_hook()), "hooks"),
        (lambda: (tokens(36), None, norm(36)), "multiples of 8"),
        (lambda: (tokens(2048), None, norm(2048)), "up to 1024"),
        (lambda: (tokens(), None, nn.LayerNorm((6, 64), device="cuda")), "(6, 64) channels"),
        (lambda: (tokens(), tokens(B=1), norm()), "other shapes"),
        (lambda: (tokens(B=0), None, norm()), "no rows"),
        (lambda: (tokens(), None, nn.LayerNorm(64)), "on cpu instead of a tensor on cuda"),
        (lambda: (tokens(dtype=torch.float64), None, norm(dtype=torch.float64)), "float64"),
        (lambda: (tokens(), tokens(dtype=torch.float64), norm()), "float64"),
        (lambda: (tokens(dtype=torch.bfloat16), None, norm()), "another dtype than torch.bfloat16"),
        (lambda: (torch.empty(2, 6, 64), None, nn.LayerNorm(64)), "tensors on cpu"),
    ],
)
def test_obstacles(case, reason):
    obstacle = layer_norm._obstacle(*case())
    assert obstacle is None if reason is None else reason in obstacle


def test_obstacles_of_the_machine(monkeypatch):
    layer_norm._capability_obstacle.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "7.5, the kernel needs 8.0" in layer_norm._obstacle(tokens(), None, norm())
    monkeypatch.setattr(gpu, "unavailable_reason", lambda: "no Triton")
    assert layer_norm._obstacle(tokens(), None, norm()) == "no Triton"


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
