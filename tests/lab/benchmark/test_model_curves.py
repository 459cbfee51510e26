"""Exponents and crossovers of curves whose formulas are known."""

import pytest

from flatten_det.lab.benchmark.growth import (
    EVERYWHERE,
    NOWHERE,
    VARIANTS,
    Curve,
    Growth,
    find_crossover,
)
from flatten_det.lab.benchmark.memory import Peak
from flatten_det.lab.benchmark.models import ModelBenchmark
from flatten_det.lab.benchmark.run import Cost, Result, Setting
from flatten_det.lab.benchmark.sources import Size
from flatten_det.lab.benchmark.timing import Timing

PIXELS = [side**2 for side in (64, 128, 256, 512, 1024)]


def power(factor, exponent):
    return Curve({n: factor * n**exponent for n in PIXELS})


def test_exponent_of_a_power():
    assert power(3e-7, 1.5).exponent(0) == pytest.approx(1.5)


def test_exponent_leaves_small_images_out():
    curve = Curve({n: float(max(n, 256**2)) ** 2 for n in PIXELS})
    assert curve.exponent(256**2) == pytest.approx(2)
    assert curve.exponent(0) < 1.9


@pytest.mark.parametrize("points", [{}, {4096: 1.0}, {64: 1.0, 4096: 2.0}])
def test_no_exponent_without_two_points(points):
    assert Curve(points).exponent(100) is None


def test_crossover_lies_where_the_formulas_meet():
    linear, quadratic = power(1e-6, 1), power(1e-11, 2)
    crossover = find_crossover(linear, quadratic)
    assert crossover.pixels == pytest.approx(1e5)
    assert crossover.value == pytest.approx(0.1)
    assert crossover.verdict == "from 0.1 Mpx"
    assert find_crossover(quadratic, linear).verdict == NOWHERE


def test_crossover_is_the_last_one():
    """Below at 64 and 256 px, but for good only after 512 px."""
    ours = Curve(dict(zip(PIXELS, (1, 3, 1, 4, 1), strict=True)))
    theirs = Curve(dict.fromkeys(PIXELS, 2.0))
    crossover = find_crossover(ours, theirs)
    assert PIXELS[3] < crossover.pixels < PIXELS[4]
    assert crossover.value == pytest.approx(2)


def test_below_at_all_sizes_and_nothing_in_common():
    assert find_crossover(power(1, 1), power(2, 1)).verdict == EVERYWHERE
    assert find_crossover(power(1, 1), power(1, 1)).verdict == NOWHERE
    assert find_crossover(power(1, 1), Curve({7: 1.0})) is None


def make_result(name, size, seconds, peak=None, macs=None, failure=None):
    return Result(
        Setting(size),
        name,
        Cost(macs, 1000, None if macs else "not counted: it cannot be"),
        None if seconds is None else Timing(tuple(seconds)),
        None if peak is None else Peak(peak),
        failure,
    )


def test_sizes_without_a_value_are_left_out():
    results = [
        make_result("a", Size(8, 8), [1.0], peak=100),
        make_result("a", Size(16, 4), [3.0], peak=None),
        make_result("a", Size(16, 16), None, failure="out of memory"),
    ]
    assert Curve.of(results, "time").points == {64: 2.0}
    assert Curve.of(results, "peak memory").points == {64: 100}
    assert Curve.of(results, "multiply-adds").points == {}


def test_comparison():
    small, large = Size(10, 10), Size(100, 100)
    results = [
        # The median of the ratios is not the ratio of the medians.
        make_result("pvt", small, [1.0, 20.0, 3.0], macs=10),
        make_result("flatten-pvt", small, [2.0, 20.0, 30.0], macs=20),
        make_result("swin", small, None, failure="out of memory"),
        make_result("pvt", large, [40.0], macs=1000),
        make_result("flatten-pvt", large, [10.0], macs=500),
        make_result("swin", large, [5.0]),
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
    results = [make_result(name, Size(8, 8), [1.0]) for name in names]
    found = Growth(results, "pvt", 0).crossovers("inference, fp32", "time")
    assert found.keys() == {(f"flatten-pvt{v}", f"pvt{v}") for v in ("", *VARIANTS)}


def test_row():
    result = make_result("pvt", Size(100, 200), [0.1, 0.2, 0.3], peak=2**20, macs=5)
    row = ModelBenchmark().row(Growth([result], "pvt", 0), result)
    assert row["images_per_second"] == pytest.approx(5)
    assert row["megapixels_per_second"] == pytest.approx(0.1)
    assert (row["height"], row["width"], row["pixels"]) == (100, 200, 20000)
    assert (row["first_quartile_s"], row["third_quartile_s"]) == pytest.approx((0.15, 0.25))
    assert (row["peak_bytes"], row["multiply_adds"], row["parameters"]) == (2**20, 5, 1000)
    assert row["note"] == ""
    failed = make_result("pvt", Size(1, 1), None, failure="out of memory")
    assert failed.note == "out of memory; not counted: it cannot be"
