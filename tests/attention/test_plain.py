"""The plain operations against the reference in float64, and the bytes they move."""

import pytest
import torch
from attention_cases import (
    MAPS,
    TOLERANCES,
    exact,
    exact_of_each,
    make_inputs,
    plain,
    reference,
    relative_error,
    with_gradients,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from flatten_det.lab.benchmark.attention import eager_attention as eager


def check(inputs, hw_shape, num_heads, **options):
    dtype, options = inputs["v"].dtype, dict(num_heads=num_heads, hw_shape=hw_shape) | options
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(inputs["q"].shape, generator=generator).to(dtype)
    expected, expected_gradients = exact(inputs, grad, **options)
    out, gradients = with_gradients(plain, inputs, grad, **options)
    with torch.no_grad():
        alone = plain(**inputs, **options)
    rounded, rounded_gradients = with_gradients(reference, inputs, grad, **options)
    found = {"out": (out, expected, rounded), "inference": (alone, expected, rounded)}
    for name, gradient in gradients.items():
        found[name] = (gradient, expected_gradients[name], rounded_gradients[name])
    for name, (value, precise, others) in found.items():
        assert value.dtype == others.dtype, name
        # Nothing can be better than the dtype of the result allows.
        allowed = max(TOLERANCES[dtype], 3 * relative_error(others, precise))
        assert relative_error(value, precise) <= allowed, name


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("tokens", [1, 7, 63, 3136])
def test_maps(tokens, dtype):
    hw_shape = MAPS[tokens]
    for kernel_size in (5, 0):
        check(make_inputs(hw_shape, 2, 24, dtype=dtype, kernel_size=kernel_size), hw_shape, 2)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("rows", ["random", "negative", "zero", "constant"])
@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e3])
def test_rows(rows, factor, dtype):
    inputs = make_inputs((9, 7), 2, 32, factor=factor, rows=rows, dtype=dtype)
    check(inputs, (9, 7), 2)
    inputs |= dict(positions=None, scale=None, dwc_bias=None)
    check(inputs, (9, 7), 2)


@pytest.mark.parametrize("focusing_factor", [1, 2, 8])
def test_powers(focusing_factor):
    check(make_inputs((9, 7), 1, 64), (9, 7), 1, focusing_factor=focusing_factor)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_fewer_keys(dtype):
    inputs = make_inputs((8, 6), 2, 16, dtype=dtype)
    inputs |= {name: inputs[name][:, :12] for name in ("k", "v", "positions")}
    check(inputs, (8, 6), 2)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("focusing_factor", [3, 2])
def test_padding(dtype, focusing_factor):
    """Values and gradients of each map are those of the map alone, and zero in the padding."""
    (H, W), sizes = (6, 8), [(6, 5), (3, 8), (1, 1)]
    options = dict(num_heads=2, focusing_factor=focusing_factor)
    inputs = make_inputs((H, W), 2, 16, batch=3, dtype=dtype)
    grad = torch.randn(inputs["q"].shape, generator=torch.Generator().manual_seed(1))
    padded = options | dict(hw_shape=(H, W), sizes=torch.tensor(sizes))
    out, gradients = with_gradients(plain, inputs, grad, **padded)
    with torch.no_grad():
        at_inference = plain(**inputs, **padded)
    expected, expected_gradients = exact_of_each(inputs, grad, (H, W), sizes, **options)
    found = {"out": out, "inference": at_inference, **gradients}
    expected = {"out": expected, "inference": expected, **expected_gradients}
    for name, value in found.items():
        assert relative_error(value, expected[name]) <= 3 * TOLERANCES[dtype], name
        if name in ("out", "inference", "q", "k", "v"):
            assert not value[expected[name] == 0].any(), name


class _Bytes(TorchDispatchMode):
    """Sums in ``total`` what all operations read and write, in bytes."""

    FREE = ("detach", "empty", "empty_strided", "_unsafe_view")

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket.__name__ not in self.FREE:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            # Of expanded ones, what there is.
            self.total += sum(min(x.untyped_storage().nbytes(), x.nbytes) for x in tensors)
        return out


def _tensors(num_heads, d, hw_shape, dtype, device, grad=False):
    tokens, channels = hw_shape[0] * hw_shape[1], num_heads * d
    qkv = torch.empty(8, tokens, 3 * channels, dtype=dtype, device=device)
    shapes = ((1, tokens, channels), (1, 1, channels), (d, 1, 5, 5), (d,))
    parameters = [torch.empty(shape, device=device) for shape in shapes]
    return [x.detach().requires_grad_(grad) for x in (*qkv.chunk(3, dim=-1), *parameters)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_heads", "d", "hw_shape"), [(1, 64, (200, 320)), (5, 64, (50, 80)), (3, 32, (200, 320))]
)
def test_no_more_bytes_than_eager(num_heads, d, hw_shape, dtype, monkeypatch):
    """Under CUDA's autocast, forward and with backward: on a GPU, bytes are time."""
    # There is no card here to ask.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    sizes = (num_heads, d, hw_shape, dtype)

    def calling(function):
        def call(q, k, v, *parameters):
            return function(
                q=q, k=k, v=v, num_heads=num_heads, hw_shape=hw_shape, **_named(parameters)
            )

        return call

    def under_autocast(*tensors):
        with torch.autocast("cuda", dtype):
            return calling(eager)(*tensors)

    # Autograd asks for a device, so what autocast makes of the code is recorded and then run without one.
    with torch.no_grad(), FakeTensorMode():
        recorded = make_fx(under_autocast)(*_tensors(*sizes, "cuda"))
    for grad in (False, True):
        moved = []
        for call in (recorded, calling(plain)):
            tensors = _tensors(*sizes, "meta", grad)
            with torch.set_grad_enabled(grad), _Bytes() as counter:
                out = call(*tensors)
                if grad:
                    torch.autograd.grad(out, tensors, torch.empty_like(out))
            moved.append(counter.total)
        assert moved[1] < 0.9 * moved[0]


def _named(parameters):
    return dict(zip(("positions", "scale", "dwc_weight", "dwc_bias"), parameters, strict=True))
