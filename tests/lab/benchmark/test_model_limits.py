"""What is left out because smaller images took long, or too much."""

import pytest

from flatten_det.lab.benchmark.models import reason_to_skip
from flatten_det.lab.benchmark.run import Cost, Result, Setting
from flatten_det.lab.benchmark.sources import Size
from flatten_det.lab.benchmark.timing import Timing


def make_result(side, seconds=None, macs=None, failure=None, name="a", mode="inference"):
    timing = None if seconds is None else Timing((seconds,))
    return Result(Setting(Size(side, side), mode), name, Cost(macs, None), timing, failure=failure)


def test_time_grows_with_the_multiply_adds():
    earlier = [make_result(64, 0.5, macs=1), make_result(128, 1.0, macs=10)]
    cell = make_result(256, macs=160)
    assert reason_to_skip(cell, earlier, max_seconds=16) is None
    reason = reason_to_skip(cell, earlier, max_seconds=15.9)
    assert reason == "too slow: about 16 s per call, more than --max-seconds 15.9"
    assert reason_to_skip(cell, earlier, max_seconds=None) is None


def test_time_grows_with_the_pixels_where_nothing_is_counted():
    cell = make_result(512)
    assert reason_to_skip(cell, [make_result(128, 1.0)], max_seconds=16) is None
    assert "about 16 s" in reason_to_skip(cell, [make_result(128, 1.0)], max_seconds=15)


@pytest.mark.parametrize(
    "other",
    [make_result(64, 9.0, name="b"), make_result(64, 9.0, mode="training"), make_result(256, 9.0)],
)
def test_other_cells_do_not_matter(other):
    assert reason_to_skip(make_result(128), [other], max_seconds=1) is None


@pytest.mark.parametrize("failure", ["out of memory", "too slow"])
def test_what_was_hopeless_is_not_tried_at_larger_sizes(failure):
    earlier = [make_result(64, 0.1), make_result(128, failure=f"{failure}, it seems: killed")]
    reason = reason_to_skip(make_result(256), earlier, max_seconds=None)
    assert reason == f"{failure}: so it was at 128x128 already"
    earlier.append(make_result(256, failure=reason))
    assert reason_to_skip(make_result(512), earlier, max_seconds=None) == reason


def test_other_failures_are_tried_again():
    earlier = [make_result(64, failure="RuntimeError: selected index k out of range")]
    assert reason_to_skip(make_result(256), earlier, max_seconds=1) is None
