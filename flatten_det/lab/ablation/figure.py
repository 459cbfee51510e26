"""The figure of an ablation: how each variant learns, and where each of its runs ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..analysis.style import save

if TYPE_CHECKING:
    from .report import Summary

# Told apart without colour: markers first, then dashes; from dark to light.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_COLOURS = ("#1b1b3a", "#b5651d", "#3b528b", "#2a9d6f", "#7a7a7a")
_LEVELS = (":", (0, (8, 4)))
_FONT = 8


def draw(
    summaries: Sequence[Summary], metric: str, levels: Mapping[str, float], path: Path
) -> None:
    """Draw the variants' curves, if there is more than one validation, and beside them all runs.

    Args:
        summaries: of the variants.
        metric: name of the axis that both panels share.
        levels: values to mark by a horizontal line.
        path: the PNG file.
    """
    has_curves = any(len(summary.curve) > 1 for summary in summaries)
    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 1 + has_curves, sharey=True, squeeze=False)[0]
    if has_curves:
        _draw_curves(panels[0], summaries)
    _draw_ends(panels[-1], summaries)
    for axes in panels:
        for (name, value), line in zip(levels.items(), cycle(_LEVELS), strict=False):
            label = name if axes is panels[0] else None
            axes.axhline(value, color="0.55", linestyle=line, linewidth=1, label=label)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=_FONT)
    panels[0].set_ylabel(metric, fontsize=_FONT)
    if panels[0].get_legend_handles_labels()[0]:
        figure.legend(
            loc="outside lower center", ncols=4, fontsize=_FONT, frameon=False, handlelength=3
        )
    save(figure, path)


def _draw_curves(axes: Axes, summaries: Sequence[Summary]) -> None:
    for number, summary in enumerate(summaries):
        iterations, values = zip(*summary.curve, strict=True)
        axes.plot(
            iterations,
            values,
            label=summary.variant,
            linestyle=_DASHES[number % len(_DASHES)],
            linewidth=1.3,
            markersize=4,
            **_style(number),
        )
    axes.set_xlabel("iteration", fontsize=_FONT)
    axes.set_title("mean over seeds", fontsize=_FONT)


def _draw_ends(axes: Axes, summaries: Sequence[Summary]) -> None:
    for place, summary in enumerate(summaries):
        style = _style(place)
        seeds = list(summary.values.values())
        axes.scatter(
            [place - 0.18] * len(seeds),
            seeds,
            marker=style["marker"],
            facecolors="white",
            edgecolors=style["color"],
            s=22,
            zorder=3,
        )
        axes.errorbar(
            place + 0.18, summary.mean, summary.deviation, capsize=4, markersize=6, **style
        )
    axes.set_xticks(range(len(summaries)), [summary.variant for summary in summaries], rotation=30)
    axes.set_xlim(-0.6, len(summaries) - 0.4)
    axes.set_title("end: seeds (white), mean ± std", fontsize=_FONT)


def _style(number: int) -> dict[str, Any]:
    return dict(color=_COLOURS[number % len(_COLOURS)], marker=_MARKERS[number % len(_MARKERS)])
