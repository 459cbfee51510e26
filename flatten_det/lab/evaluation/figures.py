"""Figures of an evaluation, readable without colour, for one class or hundreds."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import printable
from ..benchmark.report import save_figure

FONT, SMALL_FONT, TINY_FONT = 8, 7, 6
LARGEST_MATRIX = 30  # classes; of more, the most confused pairs are drawn
PAIRS = 30
_NUMBERED_MATRIX = 16  # classes up to which cells have numbers
_LONGEST_NAME = 24
_ROWS = 40  # of a column of bars
_ROW = 0.17  # inches
_DARK, _MIDDLE, _LIGHT = "#1b1b3a", "#7a7a7a", "#c9c9d6"
_MARKERS = ("D", "^", "o", "s")
_DPI = 150


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

    Args:
        names: of the classes.
        series: values (classes,) from 0 to 1 by name; the first are the bars. Classes without a number are
            left out.
        title: above it.
        path: where it goes.
    """
    (main, values), *others = series.items()
    order = [n for n in np.argsort(values, kind="stable") if not np.isnan(values[n])]
    columns = max(1, -(-len(order) // _ROWS))
    rows = max(-(-len(order) // columns), 1)
    figure = Figure((max(5.2, 3.2 * columns), rows * _ROW + 1.1), layout="constrained")
    for column, axes in enumerate(figure.subplots(1, columns, squeeze=False)[0]):
        part = order[column * rows : (column + 1) * rows]
        axes.barh(
            range(len(part)),
            [values[n] for n in part],
            0.75,
            color=_LIGHT,
            edgecolor=_DARK,
            linewidth=0.5,
            label=main,
        )
        for (label, marks), marker in zip(others, _MARKERS, strict=False):
            axes.plot(
                [marks[n] for n in part],
                range(len(part)),
                marker,
                color=_DARK,
                markerfacecolor="none",
                markersize=3.5,
                markeredgewidth=0.8,
                label=label,
            )
        axes.set_yticks(range(len(part)), [shown(names[n]) for n in part])
        axes.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
        axes.tick_params(labelsize=SMALL_FONT, length=2)
        axes.grid(axis="x", alpha=0.4, linewidth=0.5)
    left_out = len(names) - len(order)
    note = f"\n{left_out} classes without objects are left out" if left_out else ""
    figure.suptitle(f"{title}, the lowest first{note}", fontsize=FONT)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles[::-1],  # The bars come last.
        labels[::-1],
        loc="outside lower center",
        ncols=len(series),
        fontsize=SMALL_FONT,
        frameon=False,
    )
    save_figure(figure, path, _DPI)


def draw_curves(
    names: Sequence[str], recalls: np.ndarray, curves: np.ndarray, title: str, path: Path
) -> None:
    """A PNG with a panel for each class that has objects: precision over recall at IoU 0.5, and its mean.

    Args:
        names: of the classes.
        recalls: (R,), and ``curves`` (2, classes, R): precision at IoU 0.5, and the mean over all IoUs.
        curves: see there; NaN for classes without objects.
        title: above it.
        path: where it goes.
    """
    drawn = np.flatnonzero(~np.isnan(curves[0, :, 0]))
    count = max(len(drawn), 1)
    columns = min(count, 3 if count <= 6 else 8)
    rows = -(-count // columns)
    side = 2.1 if count <= 6 else 1.15
    head, foot, left, gap, space = 0.62, 0.28, 0.48, 0.26, 0.14
    width = max(left + columns * (side + space), 5.0)
    height = head + rows * (side + gap) + foot
    figure = Figure((width, height))
    for index, number in enumerate(drawn):
        row, column = divmod(index, columns)
        x = left + column * (side + space)
        y = height - head - row * (side + gap) - side
        axes = figure.add_axes((x / width, y / height, side / width, side / height))
        for values, style, label in (
            (curves[0, number], dict(color=_DARK, linewidth=1.1), "IoU 0.5"),
            (curves[1, number], dict(color=_MIDDLE, linewidth=1, linestyle="--"), "mean of IoUs"),
        ):
            axes.plot(recalls, values, label=label, **style)
        axes.fill_between(recalls, curves[0, number], color=_LIGHT, alpha=0.5, linewidth=0)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        longest = 28 if count <= 6 else 15
        axes.set_title(
            f"{shown(names[number], longest)} {curves[0, number].mean():.2f}",
            fontsize=SMALL_FONT if count <= 6 else TINY_FONT,
            pad=2,
        )
        axes.grid(alpha=0.4, linewidth=0.4)
        axes.tick_params(labelsize=TINY_FONT, length=2, pad=1.5)
        if column:
            axes.set_yticklabels([])
        if index + columns < len(drawn):
            axes.set_xticklabels([])
        else:
            axes.set_xticklabels(("0", "0.5", "1"))
    figure.text(0.5, 0.17 / height, "recall", fontsize=SMALL_FONT, ha="center")
    figure.text(
        0.1 / width, (foot + (height - foot - head) / 2) / height, "precision",
        fontsize=SMALL_FONT, rotation=90, va="center",
    )  # fmt: skip
    figure.text(0.5, 1 - 0.16 / height, title, fontsize=FONT, ha="center", va="center")
    if figure.axes:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="upper center",
            bbox_to_anchor=(0.5, 1 - 0.2 / height),
            ncols=2,
            fontsize=SMALL_FONT,
            frameon=False,
        )
    save_figure(figure, path, _DPI)


def confused_pairs(confusion: np.ndarray, classes: int) -> list[tuple[int, int, int, float]]:
    """Pairs of classes by how much of the first is taken for the second, the most first.

    Args:
        confusion: counts by truth (rows) and prediction; what comes after the classes is left out.
        classes: how many there are.

    Returns:
        True label, predicted label, count, and its share in the row.
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

    Args:
        names: of the rows and columns that are drawn, the background's behind the classes'.
        confusion: counts by truth (rows) and prediction (columns).
        classes: how many of them are classes.
        title: above it.
        path: where it goes.
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
    labels = [shown(name, 16) for name in names]
    axes.set_xticks(range(count), labels, rotation=90)
    axes.set_yticks(range(count), labels)
    axes.set_xticks(np.arange(count - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(count - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="0.85", linewidth=0.4)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    axes.set_ylabel("truth", fontsize=FONT)
    axes.set_xlabel("prediction", fontsize=FONT)
    axes.set_title(f"{title}\n% of the row", fontsize=FONT)
    if count <= _NUMBERED_MATRIX + 1:
        for row, column in np.argwhere(counts):
            share = shares[row, column]
            axes.text(
                column,
                row,
                f"{100 * share:.0f}" if share >= 0.005 else "<1",
                fontsize=SMALL_FONT,
                ha="center",
                va="center",
                color="white" if share > 0.5 else "black",
            )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    bar.ax.tick_params(labelsize=SMALL_FONT)
    save_figure(figure, path, _DPI)


def _draw_pairs(names: Sequence[str], confusion: np.ndarray, title: str, path: Path) -> None:
    pairs = confused_pairs(confusion, len(names))[:PAIRS]
    figure = Figure((6.2, max(len(pairs), 3) * _ROW + 1.0), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        range(len(pairs)),
        [100 * share for *_, share in pairs],
        0.75,
        color=_LIGHT,
        edgecolor=_DARK,
        linewidth=0.5,
    )
    for place, (_, _, count, share) in enumerate(pairs):
        axes.text(100 * share, place, f" {count:,}", fontsize=TINY_FONT, va="center")
    axes.set_yticks(
        range(len(pairs)),
        [f"{shown(names[row])} → {shown(names[column])}" for row, column, *_ in pairs],
    )
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    axes.grid(axis="x", alpha=0.4, linewidth=0.5)
    axes.set_xlabel("% of the true class (beside the bar: how many)", fontsize=SMALL_FONT)
    axes.set_title(
        f"{title}\n{len(names)} classes are too many for a matrix: the {len(pairs)} most confused pairs, "
        "truth → prediction",
        fontsize=FONT,
    )
    save_figure(figure, path, _DPI)


def draw_kinds(
    gains: Mapping[str, float], counts: Mapping[str, int], title: str, counted: str, path: Path
) -> None:
    """A PNG of two panels: the gain in AP50 (0 to 1) by kind of error, and how many errors there are."""
    figure = Figure((6.4, 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    kinds = list(gains)
    _draw_bars(left, [100 * gains[kind] for kind in kinds], "{:.1f}", "////")
    _draw_bars(right, [counts[kind] for kind in kinds], "{:,.0f}", "")
    left.set_yticks(range(len(kinds)), kinds)
    left.invert_yaxis()
    left.set_title("AP50 points to gain by mending it", fontsize=FONT)
    right.set_title(counted, fontsize=FONT)
    figure.suptitle(title, fontsize=FONT)
    save_figure(figure, path, _DPI)


def _draw_bars(axes: Axes, values: Sequence[float], form: str, hatch: str) -> None:
    values = [0 if np.isnan(value) else value for value in values]
    style = dict(color=_LIGHT, edgecolor=_DARK, linewidth=0.5, hatch=hatch)
    bars = axes.barh(range(len(values)), values, 0.7, **style)
    axes.bar_label(bars, [form.format(v) for v in values], padding=2, fontsize=SMALL_FONT)
    axes.margins(x=0.18)
    axes.tick_params(labelsize=SMALL_FONT, length=2)
    axes.grid(axis="x", alpha=0.4, linewidth=0.5)
