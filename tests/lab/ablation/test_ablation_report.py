"""Statistics, table and figure of outcomes that are made up."""

import math
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from flatten_det.errors import UserError
from flatten_det.lab.ablation import report as figure_module
from flatten_det.lab.ablation.report import (
    Paired,
    compare,
    draw,
    make_table,
    mean_and_deviation,
    summarize,
    unordered_accuracy,
)
from flatten_det.lab.ablation.run import Finished


def validations(value):
    curve = {450: value / 2, 900: value}
    return [dict(iteration=i, metrics={"mIoU": value}) for i, value in curve.items()]


OUTCOMES = [
    Finished(variant, seed, validations(value), 900, 1000, 120.0)
    for variant, values in {"p1-k0": (10, 20, 30), "p3-k5": (11, 22, 33)}.items()
    for seed, value in enumerate(values)
]


def test_the_table_says_what_was_measured():
    rows = make_table(summarize(OUTCOMES, "mIoU", "p1-k0"), "mIoU", "p1-k0").splitlines()

    assert rows[-2] == "| p1-k0 | 1,000 | 20.00 ± 10.00 | 10.00, 20.00, 30.00 |  |  | 2.0 |"
    # See test_comparison_by_hand.
    assert rows[-1] == (
        "| p3-k5 | 1,000 | 22.00 ± 11.00 | 11.00, 22.00, 33.00 | +2.00 ± 0.58 | 0.0742 | 2.0 |"
    )


def _drawn(outcomes, levels, tmp_path, monkeypatch) -> Figure:
    figures = []
    monkeypatch.setattr(figure_module, "save_figure", lambda figure, path: figures.append(figure))
    draw(summarize(outcomes, "mIoU", "p1-k0"), "mIoU", levels, tmp_path / "figure.png")
    return figures[0]


def test_the_figure_shows_curves_runs_and_levels(tmp_path, monkeypatch):
    figure = _drawn(OUTCOMES, {"guessing": 5.0}, tmp_path, monkeypatch)

    curves, ends = figure.axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in curves.lines}
    assert drawn["p1-k0"] == [[450, 10], [900, 20]]
    assert drawn["p3-k5"] == [[450, 11], [900, 22]]
    assert [label.get_text() for label in ends.get_xticklabels()] == ["p1-k0", "p3-k5"]
    seeds = [c.get_offsets()[:, 1].tolist() for c in ends.collections if len(c.get_offsets()) == 3]
    assert seeds == [[10, 20, 30], [11, 22, 33]]
    for axes in (curves, ends):
        assert any(set(line.get_ydata()) == {5.0} for line in axes.lines)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["p1-k0", "p3-k5", "guessing"]


def test_a_single_validation_makes_no_curve(tmp_path, monkeypatch):
    outcomes = [replace(outcome, validations=outcome.validations[-1:]) for outcome in OUTCOMES]
    figure = _drawn(outcomes, {}, tmp_path, monkeypatch)
    (ends,) = figure.axes
    assert ends.get_ylabel() == "mIoU"
    assert not figure.legends


def test_curves_are_means_of_what_all_seeds_have():
    interrupted = replace(OUTCOMES[0], validations=OUTCOMES[0].validations[1:])
    (summary,) = summarize([interrupted, *OUTCOMES[1:3]], "mIoU", "p1-k0")
    assert summary.curve == ((900, 20),)
    with pytest.raises(UserError, match="--metric AP: runs have the metrics mIoU"):
        summarize(OUTCOMES, "AP", "p1-k0")


def test_mean_and_deviation_of_a_sample():
    assert mean_and_deviation([1, 2, 6]) == (3, pytest.approx(math.sqrt(7)))
    assert mean_and_deviation([4.5]) == (4.5, None)


def test_comparison_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, error 1 / sqrt(3), t = 2 sqrt(3), two degrees of freedom,
    # whose p is 1 - t / sqrt(t^2 + 2).
    paired = compare({0: 11, 1: 22, 2: 33, 3: 0}, {0: 10, 1: 20, 2: 30})
    assert paired == Paired(
        2,
        pytest.approx(1 / math.sqrt(3)),
        pytest.approx(2 * math.sqrt(3)),
        pytest.approx(1 - math.sqrt(12 / 14)),
        3,
    )


def test_what_cannot_be_tested_is_left_open():
    assert compare({0: 3.0}, {0: 1.0}) == Paired(2, None, None, None, 1)
    assert compare({0: 3.0, 1: 4.0}, {0: 2.0, 1: 3.0}) == Paired(1, 0, None, None, 2)
    assert compare({0: 1.0}, {1: 1.0}) is None


def test_share_of_the_most_frequent_class():
    # Four columns: 2 + 2 in 6 of 16 legends, 3 + 1 in 8, 4 + 0 in 2.
    assert unordered_accuracy(4) == pytest.approx((6 * 0.5 + 8 * 0.75 + 2 * 1) / 16)
