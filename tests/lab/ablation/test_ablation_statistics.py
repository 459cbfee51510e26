import math

import pytest

from flatten_det.lab.ablation.report import compare, mean_and_deviation, unordered_accuracy


def test_mean_and_deviation_of_a_sample():
    assert mean_and_deviation([1, 2, 6]) == (3, pytest.approx(math.sqrt(7)))
    assert mean_and_deviation([4.5]) == (4.5, None)


def test_comparison_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, error 1 / sqrt(3), t = 2 sqrt(3), two degrees of freedom,
    # whose p is 1 - t / sqrt(t^2 + 2).
    paired = compare({0: 11, 1: 22, 2: 33, 3: 0}, {0: 10, 1: 20, 2: 30})
    assert paired.pairs == 3
    assert paired.difference == 2
    assert paired.error == pytest.approx(1 / math.sqrt(3))
    assert paired.t == pytest.approx(2 * math.sqrt(3))
    assert paired.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_what_cannot_be_tested_is_left_open():
    one = compare({0: 3.0}, {0: 1.0})
    assert (one.difference, one.error, one.t, one.p, one.pairs) == (2, None, None, None, 1)
    same = compare({0: 3.0, 1: 4.0}, {0: 2.0, 1: 3.0})
    assert (same.difference, same.error, same.t, same.p) == (1, 0, None, None)
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_share_of_the_most_frequent_class():
    # Four columns: 2 + 2 in 6 of 16 legends, 3 + 1 in 8, 4 + 0 in 2.
    assert unordered_accuracy(4) == pytest.approx((6 * 0.5 + 8 * 0.75 + 2 * 1) / 16)
