"""The matrices are the layer: applied to the values they give what the layer computes."""

import pytest
import torch
from torch import nn

from flatten_det.attention import FocusedLinearAttention
from flatten_det.backbones.softmax_attention import (
    CrossShapedAttention,
    ShiftedWindowAttention,
    SpatialReductionAttention,
)
from flatten_det.lab.analysis.layers import Windows, project
from flatten_det.lab.analysis.matrices import (
    Weights,
    after_stretching,
    convolution_matrix,
    output_from_matrices,
    own_variant,
    variants_of,
)

DIM = 24
TOKENS, HW_SHAPE = 63, (7, 9)


def focused(heads=3, **options):
    return FocusedLinearAttention(DIM, heads, (4, 5), **options)


LAYERS = {
    "focused": focused,
    "focused, p=1, no convolution": lambda: focused(focusing_factor=1, kernel_size=0),
    "focused, p=4, 3x3": lambda: focused(focusing_factor=4, kernel_size=3),
    "focused, windows": lambda: focused(window_size=4),
    "focused, spatial reduction": lambda: focused(fused_qkv=False, sr_ratio=2),
    "focused, q and kv": lambda: focused(fused_qkv=False, qkv_bias=False),
    "focused, lepe": lambda: focused(heads=2, lepe_kernel_size=3),
    "spatial reduction": lambda: SpatialReductionAttention(DIM, 3, sr_ratio=2),
    "softmax": lambda: SpatialReductionAttention(DIM, 2, sr_ratio=1),
    "windows": lambda: ShiftedWindowAttention(DIM, 3, window_size=4, shift_size=0),
    "shifted windows": lambda: ShiftedWindowAttention(DIM, 3, window_size=4, shift_size=2),
    "stripes": lambda: CrossShapedAttention(DIM, 4, split_size=2),
    "whole map": lambda: CrossShapedAttention(DIM, 4, split_size=None),
}
MAPS = [(7, 9), (8, 4), (3, 11)]


def make(name: str) -> nn.Module:
    """A layer with nothing left at zero or one."""
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer


def windows_of(name: str) -> list[Windows]:
    return project(make(name), torch.randn(TOKENS, DIM), HW_SHAPE)


def before_projection(layer: nn.Module, x, hw_shape):
    """What the layer hands to its output projection."""
    seen = []
    handle = layer.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        layer(x[None], hw_shape)
    handle.remove()
    return seen[0].reshape(len(x), -1)


@pytest.mark.parametrize("hw_shape", MAPS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_matrices_give_the_output_of_the_layer(name, hw_shape):
    layer = make(name)
    x = torch.randn(hw_shape[0] * hw_shape[1], DIM)
    out = output_from_matrices(project(layer, x, hw_shape), len(x))
    exact = before_projection(make(name).double(), x.double(), hw_shape)
    torch.testing.assert_close(out, exact, rtol=0, atol=1e-10)
    in_float32 = before_projection(layer, x, hw_shape).double()
    assert (out - in_float32).abs().max() < 1e-5 * max(1, out.abs().max())


@pytest.mark.parametrize("name", LAYERS)
def test_every_token_of_every_head_is_a_query_once(name):
    windows = windows_of(name)
    for head in {head for part in windows for head in part.heads}:
        tokens = torch.cat([part.tokens.flatten() for part in windows if head in part.heads])
        assert sorted(tokens[tokens >= 0].tolist()) == list(range(TOKENS))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_positive_and_sum_to_one(name):
    """To less in linear attention, where a query has hardly a positive entry: eps is not small then."""
    for part in windows_of(name):
        for variant in variants_of(part):
            matrix = Weights(part, variant).matrix(0, 0)
            assert matrix.shape == (part.queries.shape[1], part.keys.shape[1])
            assert matrix.min() >= 0
            sums = matrix.sum(1)
            assert sums.max() < 1 + 1e-12
            assert sums.min() > (0 if variant.power else 1 - 1e-12)
            assert sums.median() > 1 - 1e-3


def test_rows_and_factors_are_those_of_the_matrix():
    (part,) = windows_of("focused")
    rows = torch.tensor([5, 60, 2])
    for variant in variants_of(part):
        weights = Weights(part, variant)
        whole = weights.matrix(0, 1)
        torch.testing.assert_close(weights.matrix(0, 1, rows), whole[rows])
        both = weights.matrix(0, 1, channel=3)
        torch.testing.assert_close(weights.matrix(0, 1, rows, channel=3), both[rows])
        factors = weights.factors(0, 1)
        assert (factors is None) == (variant.power is None)
        if factors is not None:
            torch.testing.assert_close(factors[0] @ factors[1].T, whole)


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("focused", ["softmax", "plain linear", "focused linear", "focused + conv."]),
        ("focused, p=1, no convolution", ["softmax", "plain linear"]),
        ("softmax", ["softmax", "plain linear", "focused linear"]),
        ("stripes", ["softmax", "softmax + conv.", "plain linear", "focused linear"]),
    ],
)
def test_variants_name_what_the_layer_is(name, variants):
    windows = windows_of(name)[0]
    assert [variant.name for variant in variants_of(windows)] == variants
    assert own_variant(windows).convolution == any("conv." in name for name in variants)


@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize("hw_shape", [(6, 7), (2, 9), (1, 1)], ids=str)
def test_convolution_matrix(size, hw_shape):
    convolution = nn.Conv2d(1, 1, size, padding=size // 2, bias=False).double()
    image = torch.randn(1, 1, *hw_shape, dtype=torch.float64)
    matrix = convolution_matrix(convolution.weight[0, 0].detach(), hw_shape)
    torch.testing.assert_close(matrix @ image.flatten(), convolution(image).flatten().detach())
    assert matrix.is_sparse
    assert matrix._nnz() <= size * size * image.numel()


def test_values_stretched_before_a_convolution():
    values = torch.randn(6, dtype=torch.float64)
    stretched = nn.functional.interpolate(values[None, None], size=20, mode="linear")[0, 0]
    matrix = convolution_matrix(torch.randn(3, 3, dtype=torch.float64), (4, 5))
    composed = after_stretching(matrix, 6)
    assert composed.is_sparse
    torch.testing.assert_close(composed @ values, matrix @ stretched)


@pytest.mark.parametrize(
    ("layer", "tokens", "message"),
    [(nn.Linear(2, 2), 63, "Linear is no attention layer"), (None, 62, "not .H.W, C. for a map")],
)
def test_what_cannot_be_projected(layer, tokens, message):
    with pytest.raises(ValueError, match=message):
        project(layer or make("focused"), torch.randn(tokens, DIM), HW_SHAPE)
