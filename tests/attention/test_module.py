"""The layer: sizes, windows, spatial reduction, grids."""

import pytest
import torch
from attention_cases import randomised
from torch import nn

from flatten_det.attention import FocusedLinearAttention, resize_grid
from flatten_det.attention.maps import pad_to_multiple


def test_fused_and_separate_projections_are_the_same_function():
    fused = randomised(FocusedLinearAttention(16, 2, (4, 6))).double()
    split = FocusedLinearAttention(16, 2, (4, 6), fused_qkv=False).double()
    state = fused.state_dict()
    for part in ("weight", "bias"):
        qkv = state.pop(f"qkv.{part}")
        state[f"q.{part}"], state[f"kv.{part}"] = qkv[:16], qkv[16:]
    split.load_state_dict(state)
    x = torch.randn(2, 24, 16, dtype=torch.float64)
    torch.testing.assert_close(fused(x, (4, 6)), split(x, (4, 6)))


def test_windows_attend_alone():
    """A windowed layer on a map of two windows equals the layer on each window."""
    layer = randomised(FocusedLinearAttention(8, 2, grid_size=(99, 99), window_size=4)).double()
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    out = layer(x.view(1, 32, 8), (4, 8)).view(1, 4, 8, 8)
    for part in (slice(0, 4), slice(4, 8)):
        alone = layer(x[:, :, part].reshape(1, 16, 8), (4, 4)).view(1, 4, 4, 8)
        torch.testing.assert_close(out[:, :, part], alone)


def test_windows_pad_maps_they_do_not_divide():
    layer = randomised(FocusedLinearAttention(8, 2, grid_size=(56, 56), window_size=4)).double()
    x = torch.randn(1, 5, 7, 8, dtype=torch.float64)
    padded = pad_to_multiple(x, (4, 4))
    assert padded.shape == (1, 8, 8, 8)
    whole = layer(padded.reshape(1, 64, 8), (8, 8)).view(1, 8, 8, 8)
    torch.testing.assert_close(layer(x.view(1, 35, 8), (5, 7)).view(1, 5, 7, 8), whole[:, :5, :7])


@pytest.mark.parametrize("hw_shape", [(8, 8), (5, 7)])
def test_spatial_reduction_of_keys_and_values(hw_shape):
    layer = randomised(FocusedLinearAttention(8, 2, (8, 8), fused_qkv=False, sr_ratio=2)).double()
    assert layer.positional_encoding.shape == (1, 16, 8)
    N = hw_shape[0] * hw_shape[1]
    out = layer(torch.randn(2, N, 8, dtype=torch.float64), hw_shape)
    assert out.shape == (2, N, 8)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_heads=3), "not a multiple of num_heads=3"),
        (dict(kernel_size=4), "kernel_size must be odd"),
        (dict(sr_ratio=2), "needs fused_qkv=False"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        FocusedLinearAttention(**dict(dim=8, num_heads=2, grid_size=(4, 4)) | kwargs)


def test_resize_grid():
    grid = torch.randn(1, 12, 5)
    assert resize_grid(grid, (3, 4), (3, 4)) is grid
    image = grid.view(3, 4, 5).permute(2, 0, 1)[None]
    expected = nn.functional.interpolate(image, size=(5, 2), mode="bilinear", align_corners=False)
    resized = resize_grid(grid, (3, 4), (5, 2))
    torch.testing.assert_close(resized, expected[0].permute(1, 2, 0).reshape(1, 10, 5))
    assert resize_grid(grid.half(), (3, 4), (6, 8)).dtype == torch.float16
