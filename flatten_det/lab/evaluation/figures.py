"""Figures of an evaluation, readable without colour, for one class or hundreds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from ...errors import printable
from ..output import save_figure

FONT, SMALL_FONT, TINY_FONT = 8, 7, 6
LARGEST_MATRIX = 30  # classes; of more, the most confused pairs are drawn
PAIRS = 30
_NUMBERED_MATRIX = 16  # classes up to which cells have numbers
_LONGEST_NAME = 24
_ROWS = 40  # of a column of bars
_ROW = 0.17  # inches
_DARK, _MIDDLE, _LIGHT = "#1b1b3a", "#7a7a7a", "#c9c9d6"
_MARKERS = ("D", "^", "o", "s")
DPI = 150


def shown(name: str, longest: int = _LONGEST_NAME) -> str:
    """A stranger's name as matplotlib draws it: in one line, not too long, and no formula."""
    text = printable(name)
    if len(text) > longest:
        text = f"{text[: longest - 1]}…"
    return text.replace("$", r"\$")


def draw_classes(
    names: Sequence[str], series: Mapping[str, np.ndarray], title: str, path: Path
) -> None:
    """A PNG of a bar for each class, the lowest first, and marks for what else was measured.

    ``series`` are values (classes,) from 0 to 1 by name; the first are the bars. Classes without a number
    are left out.
    """
    (main, values), *others = series.items()
    order = [n for n in np.argsort(values, kind="stable") if not np.isnan(values[n])]
    columns = max(1, -(-len(order) // _ROWS))
    rows = max(-(-len(order) // columns), 1)
    figure = Figure((max(5.2, 3.2 * columns), rows * _ROW + 1.1), layout="constrained")
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        part = order[column * rows : (column + 1) * rows]
        _draw_bars(axes, [shown(names[n]) for n in part], values[part], label=main)
        for (label, marks), marker in zip(others, _MARKERS, strict=False):
            style = dict(color=_DARK, markerfacecolor="none", markersize=3.5, markeredgewidth=0.8)
            axes.plot(marks[part], range(len(part)), marker, label=label, **style)
        axes.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
    left_out = len(names) - len(order)
    note = f"\n{left_out} classes without objects are left out" if left_out else ""
    figure.suptitle(f"{title}, the lowest first{note}", fontsize=FONT)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    # The bars come last.
    _add_legend(figure, handles[::-1], labels[::-1], loc="outside lower center", ncols=len(series))
    save_figure(figure, path, DPI)


def _add_legend(figure: Figure, *content: Sequence, **options) -> None:
    figure.legend(*content, fontsize=SMALL_FONT, frameon=False, **options)


def _draw_bars(axes: Axes, names: Sequence[str], values: Sequence[float], **style) -> BarContainer:
    """Horizontal bars with their names."""
    style = dict(color=_LIGHT, edgecolor=_DARK, linewidth=0.5) | style
    bars = axes.barh(range(len(values)), values, 0.75, **style)
    axes.set_yticks(range(len(values)), names)
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    axes.grid(axis="x", alpha=0.4, linewidth=0.5)
    return bars


def draw_curves(
    names: Sequence[str], recalls: np.ndarray, curves: np.ndarray, title: str, path: Path
) -> None:
    """A PNG with a panel for each class that has objects: precision over recall at IoU 0.5, and its mean.

    ``recalls`` are (R,), ``curves`` (2, classes, R): precision at IoU 0.5, and the mean over all IoUs; NaN
    for classes without objects.
    """
    drawn = np.flatnonzero(~np.isnan(curves[0, :, 0]))
    is_few = len(drawn) <= 6
    columns = max(min(len(drawn), 3 if is_few else 8), 1)
    rows = max(-(-len(drawn) // columns), 1)
    # In inches. Laid out by hand: matplotlib takes long over hundreds of panels.
    side = 2.1 if is_few else 1.15
    head, foot, left, gap, space = 0.62, 0.54, 0.48, 0.26, 0.14
    width = max(left + columns * (side + space), 5.0)
    height = head + rows * side + (rows - 1) * gap + foot
    figure = Figure((width, height))
    figure.subplots_adjust(
        left=left / width,
        right=(left + columns * (side + space) - space) / width,
        bottom=foot / height,
        top=1 - head / height,
        wspace=space / side,
        hspace=gap / side,
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for index, axes in enumerate(panels):
        if index >= len(drawn):
            axes.remove()
            continue
        exact, mean = curves[:, drawn[index]]
        axes.plot(recalls, exact, color=_DARK, linewidth=1.1, label="IoU 0.5")
        axes.plot(recalls, mean, "--", color=_MIDDLE, linewidth=1, label="mean of IoUs")
        axes.fill_between(recalls, exact, color=_LIGHT, alpha=0.5, linewidth=0)
        name = shown(names[drawn[index]], 28 if is_few else 15)
        font = SMALL_FONT if is_few else TINY_FONT
        axes.set_title(f"{name} {exact.mean():.2f}", fontsize=font, pad=2)
        axes.grid(alpha=0.4, linewidth=0.4)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), yticks=(0, 0.5, 1))
        axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
        axes.tick_params(labelsize=TINY_FONT, length=2, pad=1.5)
        axes.tick_params(labelbottom=index + columns >= len(drawn))
    figure.supxlabel("recall", fontsize=SMALL_FONT, y=0.1 / height)
    figure.supylabel("precision", fontsize=SMALL_FONT)
    figure.suptitle(title, fontsize=FONT, y=1 - 0.08 / height)
    if figure.axes:
        place = dict(loc="upper center", bbox_to_anchor=(0.5, 1 - 0.2 / height))
        _add_legend(figure, *figure.axes[0].get_legend_handles_labels(), ncols=2, **place)
    save_figure(figure, path, DPI)


def confused_pairs(confusion: np.ndarray, classes: int) -> list[tuple[int, int, int, float]]:
    """Pairs of classes by how much of the first is taken for the second, the most first.

    ``confusion`` are counts by truth (rows) and prediction; what comes after the ``classes`` is left out.
    Returns true label, predicted label, count, and its share in the row.
    """
    totals = confusion.sum(1)
    among = confusion[:classes, :classes]
    pairs = [
        (int(row), int(column), int(among[row, column]), float(among[row, column] / totals[row]))
        for row, column in np.argwhere(among)
        if row != column
    ]
    return sorted(pairs, key=lambda pair: (-pair[3], -pair[2]))


def draw_confusion(
    names: Sequence[str], confusion: np.ndarray, classes: int, title: str, path: Path
) -> None:
    """A PNG of the confusion matrix, each row as shares of the row, or of its largest confusions.

    ``names`` are of the rows and columns that are drawn, the background's behind those of the ``classes``.
    """
    if classes > LARGEST_MATRIX:
        _draw_pairs(names[:classes], confusion, title, path)
        return
    count = len(names)
    counts = confusion[:count, :count]
    shares = counts / np.maximum(confusion[:count].sum(1, keepdims=True), 1)
    cell = 0.42 if count <= _NUMBERED_MATRIX + 1 else 0.21
    side = max(count * cell, 1.4)
    figure = Figure((side + 2.4, side + 2.0), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(count), [shown(name, 16) for name in names])
        axis.set_ticks(np.arange(count - 1) + 0.5, minor=True)
    axes.tick_params(axis="x", rotation=90)
    axes.grid(which="minor", color="0.85", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    axes.set_ylabel("truth", fontsize=FONT)
    axes.set_xlabel("prediction", fontsize=FONT)
    axes.set_title(f"{title}\n% of the row", fontsize=FONT)
    if count <= _NUMBERED_MATRIX + 1:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            color = "white" if share > 0.5 else "black"
            style = dict(ha="center", va="center", fontsize=SMALL_FONT)
            axes.text(column, row, text, color=color, **style)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    save_figure(figure, path, DPI)


def _draw_pairs(names: Sequence[str], confusion: np.ndarray, title: str, path: Path) -> None:
    pairs = confused_pairs(confusion, len(names))[:PAIRS]
    figure = Figure((6.2, max(len(pairs), 3) * _ROW + 1.0), layout="constrained")
    axes = figure.subplots()
    labels = [f"{shown(names[row])} → {shown(names[column])}" for row, column, *_ in pairs]
    _draw_bars(axes, labels, [100 * share for *_, share in pairs])
    for place, (_, _, count, share) in enumerate(pairs):
        axes.text(100 * share, place, f" {count:,}", fontsize=TINY_FONT, va="center")
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.set_xlabel("% of the true class (beside the bar: how many)", fontsize=SMALL_FONT)
    axes.set_title(
        f"{title}\n{len(names)} classes are too many for a matrix: the {len(pairs)} most confused pairs, "
        "truth → prediction",
        fontsize=FONT,
    )
    save_figure(figure, path, DPI)


def draw_kinds(
    gains: Mapping[str, float], counts: Mapping[str, int], title: str, counted: str, path: Path
) -> None:
    """A PNG of two panels: the gain in AP50 (0 to 1) by kind of error, and how many errors there are."""
    figure = Figure((6.4, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = list(gains)
    points = np.nan_to_num([100 * gains[kind] for kind in kinds])
    numbers = [counts[kind] for kind in kinds]
    for axes, values, form, hatch in (
        (left, points, "{:.1f}", "////"),
        (right, numbers, "{:,.0f}", ""),
    ):
        bars = _draw_bars(axes, kinds, values, hatch=hatch)
        axes.bar_label(bars, map(form.format, values), padding=2, fontsize=SMALL_FONT)
        axes.margins(x=0.18)
    left.invert_yaxis()
    left.set_title("AP50 points to gain by mending it", fontsize=FONT)
    right.set_title(counted, fontsize=FONT)
    figure.suptitle(title, fontsize=FONT)
    save_figure(figure, path, DPI)
