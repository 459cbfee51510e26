"""Learned grids by rows, and for each map of a padded batch, equal those that are resized as a whole."""

import pytest
import torch

from flatten_det.attention import resize_grid
from flatten_det.attention.maps import resize_grid_to_each
from flatten_det.attention.tiles import GridRows
from flatten_det.backbones.base import fill_padding


@pytest.mark.parametrize("from_hw", [(7, 5), (1, 1), (56, 3)])
@pytest.mark.parametrize("to_hw", [(7, 5), (13, 11), (3, 2), (1, 40), (40, 1), (200, 320)])
def test_rows_equal_those_of_the_whole(from_hw, to_hw):
    torch.manual_seed(0)
    height, width = to_hw
    grid = torch.randn(1, from_hw[0] * from_hw[1], 8)
    whole = resize_grid(grid, from_hw, to_hw)[0]
    found = GridRows(grid, from_hw, to_hw)
    for rows in (slice(0, height), slice(height // 2, height), slice(height // 3, height // 3 + 1)):
        own = slice(rows.start * width, rows.stop * width)
        out = torch.empty(own.stop - own.start, 8)
        torch.testing.assert_close(found.of_rows(rows, out), whole[own], rtol=1e-4, atol=2e-5)
        added = torch.ones_like(out)
        found.add_to(added, rows)
        torch.testing.assert_close(added, 1 + whole[own], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("from_hw", [(7, 5), (1, 1), (56, 3)])
def test_grids_of_a_padded_batch(from_hw):
    torch.manual_seed(0)
    sizes, (H, W) = [(7, 5), (13, 11), (3, 2), (1, 40), (40, 1)], (40, 45)
    grid = torch.randn(1, from_hw[0] * from_hw[1], 8, requires_grad=True)
    _, (padding,) = fill_padding(torch.zeros(5, 3, H, W), sizes, (1,), [from_hw])
    found = resize_grid_to_each(grid, padding)
    expected = torch.zeros(5, H, W, 8)
    for i, size in enumerate(sizes):
        expected[i, : size[0], : size[1]] = resize_grid(grid, from_hw, size).view(*size, 8)
    torch.testing.assert_close(found, expected.view(5, -1, 8), rtol=1e-4, atol=2e-5)
    assert padding.mask.view(5, H, W).equal((expected == 0).all(dim=3))
    gradients = (torch.autograd.grad((x * x).sum(), grid)[0] for x in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
