"""Results as a picture: times, and peak memory where it was measured."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ..report import write_figure
from .result import Result

# In inches.
_BAR_WIDTH, _GAP, _MARGINS, _LEAST_WIDTH = 0.22, 0.3, 1.2, 5.5
_HEIGHT = 3.2
_BAR_SHARE = 0.84  # of the room between two shapes
_SIDE_BY_SIDE = 3  # up to so many shapes
_WRONG, _NOTHING = "wrong", "none"


def draw(results: Sequence[Result], baseline: str, title: str, path: Path) -> None:
    """Bars per shape and candidate, a panel of times and one of memory for each dtype and mode.

    Above a bar of the times stands the speed-up over the baseline, or that the result was wrong.

    Args:
        results: of :func:`~.run.benchmark_setting`.
        baseline: named in the picture.
        title: such as the device.
        path: PNG or whatever matplotlib knows.
    """
    candidates = list(dict.fromkeys(r.candidate for r in results))
    shapes = list(dict.fromkeys(_shape(r) for r in results))
    kinds = list(dict.fromkeys(_kind(r) for r in results))
    metrics = {f"time, with speed-up over {baseline}": _draw_times}
    if any(r.peak_units is not None for r in results):
        metrics["peak memory"] = _draw_memory
    columns = len(metrics) if len(shapes) <= _SIDE_BY_SIDE else 1
    rows = len(kinds) * len(metrics) // columns
    width = max(len(shapes) * (_GAP + _BAR_WIDTH * len(candidates)) + _MARGINS, _LEAST_WIDTH)
    figure = Figure(figsize=(columns * width, rows * _HEIGHT + _MARGINS), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, (kind, metric) in zip(panels.flat, product(kinds, metrics), strict=True):
        chosen = {(_shape(r), r.candidate): r for r in results if _kind(r) == kind}
        metrics[metric](axes, chosen, shapes, candidates)
        axes.set_title(f"{kind}: {metric}", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    figure.suptitle(title, fontsize=11)
    write_figure(figure, path, 130)


def _draw_times(axes: Axes, chosen: dict, shapes: list[str], candidates: list[str]) -> None:
    for candidate, position, result, width in _bars(chosen, shapes, candidates):
        value = result.timing.median * 1e3 if result and result.timing else None
        label = ""
        if value is not None:
            label = _WRONG if result.verdict == "failed" else _speedup(result)
        elif result is not None:
            label = _NOTHING
        _bar(axes, candidate, candidates, position, width, value, label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_ylabel("ms per call (median)")
    _name_shapes(axes, shapes)


def _draw_memory(axes: Axes, chosen: dict, shapes: list[str], candidates: list[str]) -> None:
    for candidate, position, result, width in _bars(chosen, shapes, candidates):
        value = result.peak_units if result else None
        label = f"{value:.1f}" if value is not None else _NOTHING if result else ""
        _bar(axes, candidate, candidates, position, width, value, label)
    axes.set_ylabel("units of batch x tokens x channels")
    axes.margins(y=0.12)
    _name_shapes(axes, shapes)


def _bars(chosen: dict, shapes: list[str], candidates: list[str]):
    """Candidate, position on the axis, result or None, and width of each bar."""
    width = _BAR_SHARE / len(candidates)
    for number, candidate in enumerate(candidates):
        for index, shape in enumerate(shapes):
            position = index + (number - (len(candidates) - 1) / 2) * width
            yield candidate, position, chosen.get((shape, candidate)), width


def _bar(
    axes: Axes,
    candidate: str,
    candidates: list[str],
    position: float,
    width: float,
    value: float | None,
    label: str,
) -> None:
    known = axes.get_legend_handles_labels()[1]
    drawn = axes.bar(
        position,
        float("nan") if value is None else value,
        0.92 * width,
        color=f"C{candidates.index(candidate)}",
        label=candidate if candidate not in known else None,
    )
    if value is None:
        axes.annotate(
            label,
            (position, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            rotation=90,
        )
    else:
        axes.bar_label(drawn, [label], padding=2, fontsize=7, rotation=90 if label == _WRONG else 0)


def _name_shapes(axes: Axes, shapes: list[str]) -> None:
    axes.set_xticks(range(len(shapes)), shapes, fontsize=8)
    axes.set_xlabel("shape x batch")
    axes.set_xlim(-0.6, len(shapes) - 0.4)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(y=0.15)


def _speedup(result: Result) -> str:
    return "" if result.speedup is None else f"{result.speedup:.2g}x"


def _shape(result: Result) -> str:
    return f"{result.setting.case.name} x{result.setting.batch}"


def _kind(result: Result) -> str:
    setting = result.setting
    return f"{setting.level}, {setting.mode}, {setting.dtype}{' AMP' if setting.amp else ''}"
