"""Rows of a grid that never exists as a whole equal those of the whole."""

import pytest
import torch

from flatten_det.attention import resize_grid
from flatten_det.attention.grid import GridRows


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
