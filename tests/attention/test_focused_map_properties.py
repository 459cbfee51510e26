"""What holds for the focused map of every row, however small, large or sparse."""

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
