"""Table and figure of outcomes that are made up."""

import pytest
from matplotlib.figure import Figure

from flatten_det.ablation.figure import draw
from flatten_det.ablation.report import make_table, summarize
from flatten_det.ablation.run import Finished
from flatten_det.engine.errors import UserError

OUTCOMES = [
    Finished(variant, seed, {"mIoU": value}, 900, 1000, 120.0)
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


def test_an_unknown_metric_is_named():
    with pytest.raises(UserError, match="--metric AP: runs have the metrics mIoU"):
        summarize(OUTCOMES, "AP", "p1-k0")


def test_the_figure_shows_every_run_and_level(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **others: figures.append(self))
    draw(summarize(OUTCOMES, "mIoU", "p1-k0"), "mIoU", {"guessing": 5.0}, tmp_path / "figure.png")

    (axes,) = figures[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["p1-k0", "p3-k5"]
    points = [tuple(point) for drawn in axes.collections for point in drawn.get_offsets()]
    for row, values in enumerate([(10, 20, 30), (11, 22, 33)]):
        assert {(value, row) for value in values} <= set(points)
    assert any(set(line.get_xdata()) == {5.0} for line in axes.lines)
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert set(labels) == {"guessing", "one seed", "mean ± std"}
