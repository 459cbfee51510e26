"""Exponents and crossovers of curves whose formulas are known; what is left out at larger sizes."""

import pytest

from flatten_det.lab.benchmark.growth import (
    EVERYWHERE,
    NOWHERE,
    VARIANTS,
    Growth,
    curve_of,
    find_crossover,
    fit_exponent,
)
from flatten_det.lab.benchmark.memory import Peak
from flatten_det.lab.benchmark.models import ModelBenchmark
from flatten_det.lab.benchmark.run import Cost, Result, Setting
from flatten_det.lab.benchmark.sources import Size

PIXELS = [side**2 for side in (64, 128, 256, 512, 1024)]
TOO_LARGE = "out of memory"


def power(factor, exponent):
    return {n: factor * n**exponent for n in PIXELS}


def test_exponent():
    assert fit_exponent(power(3e-7, 1.5), 0) == pytest.approx(1.5)
    # Small images are left out.
    curve = {n: float(max(n, 256**2)) ** 2 for n in PIXELS}
    assert fit_exponent(curve, 256**2) == pytest.approx(2)
    assert fit_exponent(curve, 0) < 1.9
    for too_few in ({}, {4096: 1.0}, {64: 1.0, 4096: 2.0}):
        assert fit_exponent(too_few, 100) is None


def test_crossover_lies_where_the_formulas_meet():
    linear, quadratic = power(1e-6, 1), power(1e-11, 2)
    crossover = find_crossover(linear, quadratic)
    assert crossover.pixels == pytest.approx(1e5)
    assert crossover.value == pytest.approx(0.1)
    assert crossover.verdict == "from 0.1 Mpx"
    assert find_crossover(quadratic, linear).verdict == NOWHERE
    assert find_crossover(power(1, 1), power(2, 1)).verdict == EVERYWHERE
    assert find_crossover(power(1, 1), power(1, 1)).verdict == NOWHERE
    assert find_crossover(power(1, 1), {7: 1.0}) is None


def test_crossover_is_the_last_one():
    """Below at 64 and 256 px, but for good only after 512 px."""
    ours = dict(zip(PIXELS, (1, 3, 1, 4, 1), strict=True))
    crossover = find_crossover(ours, dict.fromkeys(PIXELS, 2.0))
    assert PIXELS[3] < crossover.pixels < PIXELS[4]
    assert crossover.value == pytest.approx(2)


def result(name, size, times=None, peak=None, macs=None, failure=None, mode="inference"):
    cost = Cost(macs, 1000, None if macs else "not counted: it cannot be")
    peak = None if peak is None else Peak(peak)
    return Result(Setting(size, mode), name, cost, times, peak, failure)


def test_sizes_without_a_value_are_left_out():
    results = [
        result("a", Size(8, 8), (1.0,), peak=100),
        result("a", Size(16, 4), (3.0,)),
        result("a", Size(16, 16), failure=TOO_LARGE),
    ]
    assert curve_of(results, "time") == {64: 2.0}
    assert curve_of(results, "peak memory") == {64: 100}
    assert curve_of(results, "multiply-adds") == {}


def test_comparison():
    small, large = Size(10, 10), Size(100, 100)
    results = [
        # The median of the ratios is not the ratio of the medians.
        result("pvt", small, (1.0, 20.0, 3.0), macs=10),
        result("flatten-pvt", small, (2.0, 20.0, 30.0), macs=20),
        result("swin", small, failure=TOO_LARGE),
        result("pvt", large, (40.0,), macs=1000),
        result("flatten-pvt", large, (10.0,), macs=500),
        result("swin", large, (5.0,)),
    ]
    comparison = Growth(results, "pvt", fit_from=50)
    assert [comparison.speedup(r) for r in results] == [1, 0.5, None, 1, 4, 8]
    assert comparison.kinds == ["inference, fp32"]
    (kind,) = comparison.kinds
    assert comparison.exponent(kind, "pvt", "multiply-adds") == pytest.approx(1)
    assert comparison.exponent(kind, "swin", "time") is None
    assert comparison.exponent(kind, "swin", "multiply-adds") is None
    found = comparison.crossovers(kind, "time")
    assert found.keys() == {("flatten-pvt", "pvt"), ("flatten-pvt", "swin")}
    assert 100 < found["flatten-pvt", "pvt"].pixels < 10000
    assert found["flatten-pvt", "swin"].verdict == NOWHERE
    (record,) = (
        r
        for r in comparison.crossovers_record()
        if r["below"] == "pvt" and r["quantity"] == "multiply-adds"
    )
    assert record["model"] == "flatten-pvt"
    assert record["pixels"] == pytest.approx(1000)
    assert {r["from_pixels"] for r in comparison.exponents_record()} == {50}


def test_variants_are_compared_with_their_like():
    names = [f"{model}{v}" for model in ("flatten-pvt", "pvt") for v in ("", *VARIANTS)]
    results = [result(name, Size(8, 8), (1.0,)) for name in names]
    found = Growth(results, "pvt", 0).crossovers("inference, fp32", "time")
    assert found.keys() == {(f"flatten-pvt{v}", f"pvt{v}") for v in ("", *VARIANTS)}


def test_row():
    found = result("pvt", Size(100, 200), (0.1, 0.2, 0.3), peak=2**20, macs=5)
    row = ModelBenchmark().row(Growth([found], "pvt", 0), found)
    assert row["images_per_second"] == pytest.approx(5)
    assert row["megapixels_per_second"] == pytest.approx(0.1)
    assert (row["height"], row["width"], row["pixels"]) == (100, 200, 20000)
    assert (row["first_quartile_s"], row["third_quartile_s"]) == pytest.approx((0.15, 0.25))
    assert (row["peak_bytes"], row["multiply_adds"], row["parameters"]) == (2**20, 5, 1000)
    assert row["note"] == ""
    failed = result("pvt", Size(1, 1), failure=TOO_LARGE)
    assert failed.note == "out of memory; not counted: it cannot be"


def square(side, seconds=None, macs=None, failure=None, name="a", mode="inference"):
    times = None if seconds is None else (seconds,)
    return result(name, Size(side, side), times, macs=macs, failure=failure, mode=mode)


reason_to_skip = ModelBenchmark().reason_to_skip


def test_time_grows_with_the_multiply_adds_or_else_with_the_pixels():
    earlier = [square(64, 0.5, macs=1), square(128, 1.0, macs=10)]
    cell = square(256, macs=160)
    assert reason_to_skip(cell, earlier, max_seconds=16) is None
    reason = reason_to_skip(cell, earlier, max_seconds=15.9)
    assert reason == "too slow: about 16 s per call, more than --max-seconds 15.9"
    assert reason_to_skip(cell, earlier, max_seconds=None) is None
    uncounted = square(512)
    assert reason_to_skip(uncounted, [square(128, 1.0)], max_seconds=16) is None
    assert "about 16 s" in reason_to_skip(uncounted, [square(128, 1.0)], max_seconds=15)


@pytest.mark.parametrize(
    "other",
    [
        square(64, 9.0, name="b"),
        square(64, 9.0, mode="training"),
        square(256, 9.0),
        # Other failures than of time and memory are tried again.
        square(64, failure="RuntimeError: selected index k out of range"),
    ],
)
def test_other_cells_do_not_matter(other):
    assert reason_to_skip(square(128), [other], max_seconds=1) is None


@pytest.mark.parametrize("failure", ["out of memory", "too slow"])
def test_what_was_hopeless_is_not_tried_at_larger_sizes(failure):
    earlier = [square(64, 0.1), square(128, failure=f"{failure}, it seems: killed")]
    reason = reason_to_skip(square(256), earlier, max_seconds=None)
    assert reason == f"{failure}: so it was at 128x128 already"
    earlier.append(square(256, failure=reason))
    assert reason_to_skip(square(512), earlier, max_seconds=None) == reason
