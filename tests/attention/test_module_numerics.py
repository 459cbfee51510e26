"""Numerics of every attention layer: sizes of inputs, dead rows, constant maps, single tokens."""

import math

import pytest
import torch
from attention_cases import reference
from numerics import PRECISIONS, check_numerics, with_slow, with_weights
from torch import nn

from flatten_det.attention import FocusedLinearAttention, focused_linear_attention
from flatten_det.backbones.softmax_attention import (
    CrossShapedAttention,
    ShiftedWindowAttention,
    SpatialReductionAttention,
)

DIM, HEADS = 64, 2
FOCUSED = {
    "global": {},
    "separate projections": dict(fused_qkv=False),
    "spatial reduction": dict(fused_qkv=False, sr_ratio=2),
    "windows": dict(window_size=4),
    "lepe": dict(lepe_kernel_size=3),
    "p=8": dict(focusing_factor=8),
}
SOFTMAX = {
    "pvt": lambda: SpatialReductionAttention(DIM, HEADS, sr_ratio=1),
    "pvt reduced": lambda: SpatialReductionAttention(DIM, HEADS, sr_ratio=2),
    "swin": lambda: ShiftedWindowAttention(DIM, HEADS, window_size=4, shift_size=0),
    "swin shifted": lambda: ShiftedWindowAttention(DIM, HEADS, window_size=4, shift_size=2),
    "cswin": lambda: CrossShapedAttention(DIM, HEADS, split_size=2),
    "cswin global": lambda: CrossShapedAttention(DIM, HEADS, split_size=None),
}
MAPS = [(1, 1), (1, 17), (17, 1)]


def make(layer: str) -> nn.Module:
    torch.manual_seed(0)
    if layer in SOFTMAX:
        return with_weights(SOFTMAX[layer]())
    return with_weights(FocusedLinearAttention(DIM, HEADS, (7, 7), **FOCUSED[layer]))


def tokens(hw_shape: tuple[int, int], factor: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return factor * torch.randn(2, hw_shape[0] * hw_shape[1], DIM, generator=generator)


def check(
    layer: nn.Module,
    x: torch.Tensor,
    hw_shape: tuple[int, int],
    precision: str,
    factor: float = 1.0,
) -> None:
    known_loss = 0.0
    if not isinstance(layer, FocusedLinearAttention):
        # torch's fused softmax attention takes the probabilities of its backward pass from differences
        # of scores, which grow with the square of the inputs: float32 has no digits left at 1e6. And
        # in half precision a softmax of such scores may decide otherwise.
        known_loss = 1e-6 * factor**2 if precision == "fp32" or factor < 100 else math.inf
    check_numerics(layer, x, precision, lambda module, x: [module(x, hw_shape)], known_loss)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factor", with_slow([1e-4, 1.0, 1e3], [1e-2, 1e2]))
@pytest.mark.parametrize("layer", [*FOCUSED, *SOFTMAX])
def test_factors(layer, factor, precision):
    check(make(layer), tokens((9, 7), factor), (9, 7), precision, factor)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factor", with_slow([1.0], [1e-4, 1e-2, 1e2, 1e3]))
@pytest.mark.parametrize("layer", [*FOCUSED, *SOFTMAX])
def test_constant_map(layer, factor, precision):
    x = tokens((9, 7), factor)
    check(make(layer), x[:, :1].expand_as(x).contiguous(), (9, 7), precision, factor)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("hw_shape", MAPS)
@pytest.mark.parametrize("layer", [*FOCUSED, *SOFTMAX])
def test_maps_of_one_token_or_row(layer, hw_shape, precision):
    check(make(layer), tokens(hw_shape), hw_shape, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("factor", with_slow([1.0], [1e-4, 1e3]))
@pytest.mark.parametrize("dead", ["queries", "keys", "both", "head", "half the tokens"])
@pytest.mark.parametrize("layer", FOCUSED)
def test_dead_rows(layer, dead, factor, precision):
    """Where ReLU leaves nothing of a query or key, eps alone remains."""
    module = make(layer)
    biases = {"q": module.q.bias, "k": module.kv.bias[:DIM]} if not module.fused_qkv else {}
    if module.fused_qkv:
        biases = {"q": module.qkv.bias[:DIM], "k": module.qkv.bias[DIM : 2 * DIM]}
    killed = {"queries": "q", "keys": "k"}.get(dead, "qk")
    with torch.no_grad():
        for name in killed:
            if dead == "half the tokens":
                biases[name].abs_().neg_()
            else:
                biases[name][: DIM // HEADS if dead == "head" else DIM] = -30 * factor - 30
        if dead == "half the tokens":
            module.positional_encoding.abs_().neg_()
    x = tokens((9, 7), factor)
    if dead == "half the tokens":
        x[:, ::2] = 0
    check(module, x, (9, 7), precision)


@pytest.mark.parametrize(
    ("implementation", "focusing_factor"), [("reference", 3), ("reference", 8), ("tiled", 3)]
)
@pytest.mark.parametrize("size", [6e-8, 6e-6, 6e4])
@pytest.mark.parametrize("large", ["q", "k", "v", "qkv"])
def test_values_at_the_ends_of_float16(large, size, focusing_factor, implementation):
    """From its smallest number to its largest; cubes, eighth powers and sums have no place in it."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.rand(2, 63, DIM, generator=generator) - 1 for _ in range(3))
    inputs = {"q": q, "k": k, "v": v}
    for name in large:
        inputs[name] = size * inputs[name]
    inputs = {name: value.half() for name, value in inputs.items()}
    settings = dict(num_heads=HEADS, hw_shape=(9, 7), focusing_factor=focusing_factor)
    # A mean, so that the sum over 25 places stays in range.
    settings["dwc_weight"] = torch.full((DIM // HEADS, 1, 5, 5), 0.01)
    absent = dict.fromkeys(("positions", "scale", "dwc_bias"))
    exact = reference(**{n: x.double() for n, x in inputs.items()}, **settings, **absent)
    leaves = {name: value.requires_grad_() for name, value in inputs.items()}
    with torch.autocast("cpu", torch.float16):
        out = focused_linear_attention(**leaves, **settings, implementation=implementation)
    assert out.dtype == torch.float16
    assert out.isfinite().all()
    step = 2.0**-24  # Between float16's numbers next to zero.
    assert (out.double() - exact).norm() <= 1e-3 * exact.norm() + step * exact.numel() ** 0.5
    # The gradient of q or k is large for small ones, as eps is all that there is beside them.
    gradients = torch.autograd.grad(out.float().mean() / max(size, 1), list(leaves.values()))
    assert all(gradient.isfinite().all() for gradient in gradients)
