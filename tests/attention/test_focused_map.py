"""The focused map: what holds for every row, the paper's Proposition 1, and its Figure 4."""

import torch
from fuzzing import FEW, fuzz
from hypothesis import strategies as st

from flatten_det.attention.reference import focused_map

# Rows with zeros, and of magnitudes whose squares float32 has: the norm is a sum of squares.
_ENTRIES = st.just(0.0) | st.floats(1e-4, 1.0)
_MAGNITUDES = st.sampled_from([1e-12, 1e-8, 1e-4, 1.0, 1e4, 1e16])
_POWERS = st.floats(1, 12)


def _row(entries: list[float], magnitude: float) -> torch.Tensor:
    return torch.tensor(entries, dtype=torch.float64) * magnitude


def test_keeps_the_norm_the_order_and_the_zeros():
    def check(entries: list[float], magnitude: float, power: float) -> None:
        row = _row(entries, magnitude)
        found = focused_map(row.float(), power).double()
        assert found.isfinite().all()
        assert (found >= 0).all()
        torch.testing.assert_close(found.norm(), row.norm(), rtol=1e-5, atol=0)
        assert (found[row == 0] == 0).all()
        order = row.argsort()
        assert (found[order].diff() >= 0).all()

    fuzz(check, FEW, st.lists(_ENTRIES, min_size=1, max_size=9), _MAGNITUDES, _POWERS)


def test_turns_only_the_direction_and_the_more_the_higher_the_power():
    def check(entries: list[float], magnitude: float, power: float) -> None:
        row = _row(entries, 1.0)
        found = focused_map(row, power)
        torch.testing.assert_close(
            focused_map(row * magnitude, power), found * magnitude, rtol=1e-10, atol=0
        )
        torch.testing.assert_close(focused_map(row, 1), row, rtol=1e-12, atol=0)
        # The share of the largest entry, 1 if there is no other one.
        shares = [focused_map(row, p).max() / row.norm() for p in (1, power, power + 1)]
        assert shares[0] <= shares[1] * (1 + 1e-12)
        assert shares[1] <= shares[2] * (1 + 1e-12)

    entries = st.lists(_ENTRIES, min_size=1, max_size=9).filter(any)
    fuzz(check, FEW, entries, _MAGNITUDES, _POWERS)


def test_backward_is_finite_where_the_row_is_sparse():
    def check(entries: list[float], magnitude: float, power: float) -> None:
        row = _row(entries, magnitude).float().requires_grad_()
        focused_map(row + 1e-6 * magnitude, power).sum().backward()
        assert row.grad.isfinite().all()

    fuzz(check, FEW, st.lists(_ENTRIES, min_size=1, max_size=9), _MAGNITUDES, _POWERS)


# Proposition 1: sharper inner products where the largest entries agree, smaller ones where they do not.
# The limit p -> infinity is the proof: f_p(x) goes to the axis of x's largest entry, with x's length. So
# parallel rows, whose product is the largest already, and orthogonal ones, whose product is zero, are left
# out: for them the strict inequality of the paper cannot hold.
_WHOLE_POWERS = (2, 3, 8, 32, 128, 512)
# Whole numbers with the largest above the others by at least a tenth: no two nearly equal maxima.
_REST = st.lists(st.integers(0, 9), min_size=6, max_size=6)
_INDEX = st.integers(0, 3)


def _peaked(rest: list[int], index: int) -> torch.Tensor:
    row = torch.tensor(rest[:4], dtype=torch.float64)
    row[index] = 10
    return row


def _products(x: torch.Tensor, y: torch.Tensor) -> tuple[float, list[float]]:
    return (x @ y).item(), [(focused_map(x, p) @ focused_map(y, p)).item() for p in _WHOLE_POWERS]


def test_some_power_increases_the_product_where_the_largest_entries_agree():
    def check(first: list[int], second: list[int], index: int) -> None:
        x, y = _peaked(first, index), _peaked(second, index)
        before, after = _products(x, y)
        if torch.equal(x, y):
            torch.testing.assert_close(after, [before] * len(_WHOLE_POWERS))
        else:
            assert max(after) > before

    fuzz(check, FEW, _REST, _REST, _INDEX)


def test_some_power_decreases_the_product_where_the_largest_entries_differ():
    def check(first: list[int], second: list[int], index: int, step: int) -> None:
        before, after = _products(_peaked(first, index), _peaked(second, (index + step) % 4))
        if before == 0:
            assert after == [0] * len(_WHOLE_POWERS)
        else:
            assert min(after) < before

    fuzz(check, FEW, _REST, _REST, _INDEX, st.integers(1, 3))


# Figure 4 prints the scores but not the vectors: these were found by least squares, one of many such sets.
QUERY = torch.tensor([0.79, 0.62, 2.03], dtype=torch.float64)
KEYS = torch.tensor(
    [[1.08, 1.07, 1.77], [0.90, 1.06, 0.62], [1.06, 1.82, 0.80], [0.79, 1.34, 0.51]],
    dtype=torch.float64,
)


def _scores(focusing_factor: float) -> list[float]:
    products = focused_map(KEYS, focusing_factor) @ focused_map(QUERY, focusing_factor)
    return [round(score, 2) for score in (products / products.sum()).tolist()]


def test_flat_scores_become_sharp():
    assert _scores(1) == [0.37, 0.19, 0.26, 0.18]
    assert _scores(3) == [0.75, 0.11, 0.09, 0.05]
