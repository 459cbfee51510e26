"""Proposition 1: sharper inner products where the largest entries agree, smaller ones where they do not.

The limit p -> infinity is the proof: f_p(x) goes to the axis of x's largest entry, with x's length. So
parallel rows, whose product is the largest already, and orthogonal ones, whose product is zero, are left
out: for them the strict inequality of the paper cannot hold.
"""

import torch
from fuzzing import FEW, fuzz
from hypothesis import strategies as st

from flatten_det.attention.reference import focused_map

_POWERS = (2, 3, 8, 32, 128, 512)
# Whole numbers with the largest above the others by at least a tenth: no two nearly equal maxima.
_REST = st.lists(st.integers(0, 9), min_size=6, max_size=6)
_INDEX = st.integers(0, 3)


def _row(rest: list[int], index: int) -> torch.Tensor:
    row = torch.tensor(rest[:4], dtype=torch.float64)
    row[index] = 10
    return row


def _products(x: torch.Tensor, y: torch.Tensor) -> tuple[float, list[float]]:
    return (x @ y).item(), [(focused_map(x, p) @ focused_map(y, p)).item() for p in _POWERS]


def test_some_power_increases_the_product_where_the_largest_entries_agree():
    def check(first: list[int], second: list[int], index: int) -> None:
        x, y = _row(first, index), _row(second, index)
        before, after = _products(x, y)
        if torch.equal(x, y):
            torch.testing.assert_close(after, [before] * len(_POWERS))
        else:
            assert max(after) > before

    fuzz(check, FEW, _REST, _REST, _INDEX)


def test_some_power_decreases_the_product_where_the_largest_entries_differ():
    def check(first: list[int], second: list[int], index: int, step: int) -> None:
        before, after = _products(_row(first, index), _row(second, (index + step) % 4))
        if before == 0:
            assert after == [0] * len(_POWERS)
        else:
            assert min(after) < before

    fuzz(check, FEW, _REST, _REST, _INDEX, st.integers(1, 3))
