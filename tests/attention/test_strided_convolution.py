"""Strided convolutions under autocast, for maps on which oneDNN's own bf16 kernels fail."""

import copy

import pytest
import torch
from numerics import relative_error
from torch import nn

from flatten_det.attention.maps import strided_convolution


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "size"),
    [
        ((64, 128), 3, 2, 1, (1, 1)),
        ((64, 128), 3, 2, 1, (5, 1)),
        ((160, 256), 3, 2, 1, (6, 2)),
        ((3, 64), 7, 4, 3, (1, 1)),
        ((3, 64), 7, 4, 3, (3, 2)),
        ((3, 64), 7, 4, 2, (6, 3)),
        ((16, 16), 8, 8, 0, (8, 8)),
        ((16, 16), 4, 4, 0, (12, 4)),
    ],
)
def test_values_and_gradients(channels, kernel, stride, padding, size, dtype):
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, kernel, stride, padding)
    image = torch.randn(2, channels[0], *size).requires_grad_()
    exact_conv = copy.deepcopy(conv).double()
    exact_image = image.detach().double().requires_grad_()
    expected = exact_conv(exact_image)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    with torch.autocast("cpu", dtype):
        found = strided_convolution(conv, image)
    found.backward(upstream.to(found.dtype))
    pairs = [(found, expected), (image.grad, exact_image.grad)]
    pairs += [(getattr(conv, n).grad, getattr(exact_conv, n).grad) for n in ("weight", "bias")]
    for a, b in pairs:
        assert relative_error([a], [b]) < 1e-5


def test_it_is_the_convolution_without_autocast():
    conv, image = nn.Conv2d(4, 8, 2, 2), torch.randn(1, 4, 6, 6)
    assert torch.equal(strided_convolution(conv, image), conv(image))
    assert strided_convolution(conv.double(), image.double()).dtype == torch.float64
