"""Training curves: what is read of logs, chosen, drawn and refused."""

import json

import cv2
import pytest

from flatten_det.commands.plot import main
from flatten_det.errors import UserError
from flatten_det.lab.curves import choose_keys, draw_curves, read_curves


@pytest.fixture
def run(tmp_path):
    """A run that was interrupted after iteration 30, and resumed at 20."""

    def log(start: str, *entries: dict) -> None:
        path = tmp_path / "run" / start / "vis_data" / "scalars.json"
        path.parent.mkdir(parents=True)
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))

    losses = [
        {"loss": 3 - i / 10, "lr": 0.1, "time": 1, "iter": i, "step": i} for i in (10, 20, 30)
    ]
    log("20260101_000000", *losses[:2], {"mIoU": 5.0, "time": 1, "step": 0}, losses[2])
    nan = {"loss": float("nan"), "iter": 40, "step": 40}
    log("20260102_000000", {"loss": 9.0, "iter": 30, "step": 30}, nan, {"mIoU": 7.0, "step": 0})
    return tmp_path / "run"


def test_values_by_iteration_the_resumed_ones_last(run):
    curves = read_curves(run)
    assert curves["loss"] == ([10, 20, 30], [2, 1, 9])
    # Validations belong to the iteration before them.
    assert curves["mIoU"] == ([20, 40], [5, 7])
    assert not {"time", "step", "iter"} & curves.keys()


def test_one_log_alone(run):
    (log, _) = sorted(run.rglob("scalars.json"))
    assert read_curves(log)["loss"] == ([10, 20, 30], [2, 1, 0])
    assert read_curves(log.parents[1]) == read_curves(log)


def test_keys_that_are_drawn(run):
    runs = {"run": read_curves(run)}
    assert choose_keys(runs) == ["loss", "mIoU"]
    assert choose_keys(runs, ["lr"]) == ["lr"]
    with pytest.raises(UserError, match="no run has los; there are loss, lr, mIoU"):
        choose_keys(runs, ["los"])


def test_a_panel_for_each_key_and_a_line_for_each_run(run):
    curves = read_curves(run)
    figure = draw_curves({"a": curves, "b": {"loss": curves["loss"]}}, ["loss", "mIoU"])
    assert [axes.get_title() for axes in figure.axes] == ["loss", "mIoU"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 1]
    # Runs that the first panel does not have are named too.
    figure = draw_curves({"b": {"loss": curves["loss"]}, "a": curves}, ["mIoU", "loss"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["b", "a"]
    first, second = figure.axes[1].lines
    assert first.get_marker() != second.get_marker()
    assert first.get_linestyle() != second.get_linestyle()


def test_command(run, tmp_path, capsys):
    out = tmp_path / "new" / "curves.png"
    assert main([str(run), "--out", str(out)]) == 0
    assert cv2.imread(str(out)).shape[1] > 1000
    assert capsys.readouterr().out == f"loss, mIoU of run: {out}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no .*scalars.json in it"),
        (b"{}\nno", "line 2: no JSON object"),
        (b"\xff\xfe", "scalars.json begins with"),
    ],
)
def test_what_is_no_log(tmp_path, content, message, capsys):
    if content:
        (tmp_path / "vis_data").mkdir()
        (tmp_path / "vis_data" / "scalars.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_curves(tmp_path)
    assert main([str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_without_values(run, tmp_path, capsys):
    log = tmp_path / "scalars.json"
    log.write_text('{"loss": NaN, "iter": 10}\n')
    assert main([str(log), "--out", str(tmp_path / "a.png")]) == 2
    assert "scalars.json hold no values yet" in capsys.readouterr().err


def test_a_run_twice_is_refused(run, capsys):
    assert main([str(run), str(run)]) == 2
    assert "a run is given twice" in capsys.readouterr().err
