"""Numerics of all families: sizes of inputs, dead heads, constant images, images of single pixels."""

import pytest
import torch
from mmengine.registry import MODELS
from numerics import PRECISIONS, check_numerics, with_slow, with_weights
from torch import nn

import flatten_det  # noqa: F401  registers the backbones
from flatten_det.attention import FocusedLinearAttention

# Heads of 16 channels: with eight, many a query and key have nothing in common.
PYRAMID = dict(embed_dims=(16, 32, 64, 128), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1))
ARCHS = {
    "FLattenPVT": PYRAMID,
    "FLattenPVTv2": PYRAMID,
    "FLattenSwin": dict(embed_dims=16, num_heads=(1, 2, 4, 8), depths=(1, 2, 1, 1)),
    "FLattenCSwin": dict(embed_dims=32, num_heads=(2, 4, 8, 16), depths=(1, 1, 1, 1)),
    "FLattenDeiT": dict(embed_dims=(32,), num_heads=(2,), depths=(2,)),
}
SIZE = (43, 68)


def make(family: str, attn_types: str) -> nn.Module:
    torch.manual_seed(0)
    stages = len(ARCHS[family]["depths"])
    config = dict(type=family, arch=ARCHS[family], attn_types=tuple(attn_types[:stages]))
    return with_weights(MODELS.build(config)).train()


def images(size: tuple[int, int], factor: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return factor * torch.randn(2, 3, *size, generator=generator)


def check(backbone: nn.Module, image: torch.Tensor, precision: str) -> None:
    check_numerics(backbone, image, precision, lambda backbone, image: list(backbone(image)))


pytestmark = [
    pytest.mark.parametrize("precision", PRECISIONS),
    pytest.mark.parametrize("attn_types", ["LLLL", "SSSS"]),
    pytest.mark.parametrize("family", ARCHS),
]


@pytest.mark.parametrize("factor", with_slow([], [1e-4, 1e-2, 1.0, 1e2, 1e3]))
def test_factors(family, attn_types, factor, precision):
    check(make(family, attn_types), images(SIZE, factor), precision)


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1e-4, 1.0, 1e3])
def test_constant_image(family, attn_types, factor, precision):
    image = images(SIZE, factor)
    check(make(family, attn_types), image[..., :1, :1].expand_as(image).contiguous(), precision)


@pytest.mark.parametrize(
    "size", [(1, 1), *(pytest.param(s, marks=pytest.mark.slow) for s in ((1, 90), (90, 1)))]
)
def test_images_of_one_pixel_or_row(family, attn_types, size, precision):
    check(make(family, attn_types), images(size), precision)


@pytest.mark.slow
@pytest.mark.parametrize("dead", ["first head", "all heads"])
def test_dead_heads(family, attn_types, dead, precision):
    """Queries and keys of which ReLU leaves nothing."""
    backbone = make(family, attn_types.replace("S", "L", 1))
    layers = [m for m in backbone.modules() if isinstance(m, FocusedLinearAttention)]
    assert layers
    for layer in layers:
        biases = [layer.q.bias, layer.kv.bias] if not layer.fused_qkv else [layer.qkv.bias] * 2
        C = layer.proj.in_features
        channels = C // layer.num_heads if dead == "first head" else C
        with torch.no_grad():
            biases[0][:channels] = -100
            first_key = C if layer.fused_qkv else 0
            biases[1][first_key : first_key + channels] = -100
    check(backbone, images(SIZE), precision)
