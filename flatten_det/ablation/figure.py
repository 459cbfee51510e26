"""The figure of an ablation: every run a point, every variant a mean with its deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .report import Summary

_LINES = ("--", ":", "-.")


def draw(
    summaries: Sequence[Summary], metric: str, levels: Mapping[str, float], path: Path
) -> None:
    """Draw one row a variant, in black and grey, at the width of a page.

    Args:
        summaries: of the variants, from the top to the bottom.
        metric: name of the axis.
        levels: values to mark by a vertical line.
        path: the PNG file.
    """
    figure = Figure(figsize=(6.5, 1.5 + 0.36 * len(summaries)), layout="constrained")
    axes = figure.add_subplot()
    for row, summary in enumerate(summaries):
        axes.errorbar(
            summary.mean,
            row,
            xerr=summary.deviation,
            fmt="D",
            color="black",
            capsize=4,
            markersize=6,
            label=None if row else "mean ± std",
        )
        axes.scatter(
            list(summary.values.values()),
            [row] * len(summary.values),
            facecolors="white",
            edgecolors="0.35",
            zorder=3,
            s=26,
            label=None if row else "one seed",
        )
    for (name, value), line in zip(levels.items(), cycle(_LINES), strict=False):
        axes.axvline(value, color="0.45", linestyle=line, linewidth=1.2, label=name)
    axes.set_yticks(range(len(summaries)), [summary.variant for summary in summaries])
    axes.set_ylim(len(summaries) - 0.4, -0.6)
    axes.set_xlabel(metric)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
