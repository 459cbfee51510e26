"""Figures of attention: focus, maps of weights, spectra, and statistics."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from ...attention.reference import focused_map
from ..output import save_figure
from .matrices import TOLERANCE, WeightMap
from .measure import TOP, HeadSpectrum, LayerResult, LayerSummary

WIDTH = 3.3  # inches
FONT, SMALL_FONT = 7, 6
_ORDER = (
    "softmax",
    "softmax + conv.",
    "plain linear",
    "plain + conv.",
    "focused linear",
    "focused + conv.",
)
# From dark to light in greyscale; with a dash and a hatch of its own each.
_COLOURS = ("#1b1b3a", "#3b528b", "#b5651d", "#c98a4b", "#2a9d6f", "#9fd8b5")
_DASHES = ("-", (0, (1, 1)), "--", (0, (6, 2)), "-.", (0, (3, 1, 1, 1, 1, 1)))
_HATCHES = ("", "....", "////", "xxxx", "\\\\\\\\", "----")


def in_order(names: Iterable[str]) -> list[str]:
    """Variants as figures list them, each once."""
    return sorted(set(names), key=_ORDER.index)


def line_style(name: str) -> dict[str, Any]:
    """Of a variant's curve."""
    number = _ORDER.index(name)
    return dict(color=_COLOURS[number], linestyle=_DASHES[number], linewidth=1.2)


def bar_style(name: str) -> dict[str, Any]:
    """Of a variant's bars."""
    number = _ORDER.index(name)
    return dict(
        facecolor=_COLOURS[number], hatch=_HATCHES[number], edgecolor="white", linewidth=0.3
    )


POWERS = (1, 2, 3, 8)


def fan(count: int) -> torch.Tensor:
    """``(count, 2)`` unit vectors at equal angles strictly between the two axes."""
    angles = (torch.arange(count, dtype=torch.float64) + 0.5) * torch.pi / 2 / count
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def draw_focus(path: str | Path, powers: Sequence[float] = POWERS, count: int = 12) -> None:
    """Draw ``count`` unit vectors of the first quadrant after f_p into a PNG, one panel for each power.

    A power of 1 leaves the vectors as they are. The count is even, so that none lies on the diagonal, which
    f_p does not turn.

    Raises:
        ValueError: for no powers, or a count that is not even and positive.
    """
    if not powers:
        raise ValueError("powers needs at least one value of p")
    if count < 2 or count % 2:
        raise ValueError(f"count must be even and at least 2; got {count}")
    figure = Figure(figsize=(1.2 * len(powers) + 0.3, 2.0), layout="constrained")
    vectors = fan(count)
    for panel, power in zip(
        figure.subplots(1, len(powers), sharey=True, squeeze=False)[0], powers, strict=True
    ):
        for x, y in focused_map(vectors, power).tolist():
            # Nearest axis by line style as well as by colour: readable in greyscale.
            color, style = ("tab:blue", "-") if x > y else ("tab:orange", "--")
            panel.plot([0, x], [0, y], color=color, linestyle=style, linewidth=1.2)
            panel.plot(x, y, color=color, marker="o", markersize=3)
        panel.set(title=f"p = {power:g}", xlim=(0, 1.08), ylim=(0, 1.08), aspect="equal")
        panel.set(xticks=(0, 1), yticks=(0, 1), xlabel="$x_1$")
    figure.axes[0].set_ylabel("$x_2$")
    save_figure(figure, Path(path))


_WEIGHTS = colormaps["magma_r"]  # the darker, the more: in greyscale too
_PALEST, _LIGHTEST_INK = 0.55, 0.15  # of the image; of the smallest weight drawn
_THICKEST = 0.8  # ink, so that the image shows through
_LINE = 0.15  # inches of a line of text


def draw_maps(
    grey: np.ndarray,
    rows: Mapping[str, Sequence[WeightMap]],
    point: tuple[float, float],
    path: Path,
) -> None:
    """A PNG with a row of maps for each layer, by its name; below each map its largest weight.

    The maps of a row share one scale, so that flat weights look flat. Those with a convolution, which may be
    a hundred times as large, have one of their own. ``grey`` is the image ``(H, W)``, ``point`` the query
    ``(x, y)``, all from 0 to 1.
    """
    names = in_order(m.variant.name for maps in rows.values() for m in maps)
    height, width = grey.shape
    column = (WIDTH - _LINE) / len(names)
    row_height = column * height / width + 1.3 * _LINE
    figure = Figure((WIDTH, len(rows) * row_height + 3.4 * _LINE), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.01)
    panels = figure.subplots(len(rows), len(names), squeeze=False)
    for row, (layer, maps) in enumerate(rows.items()):
        by_name = {m.variant.name: m for m in maps}
        largest = max(np.nanmax(m.weights) for m in maps if not m.variant.convolution)
        for column_number, name in enumerate(names):
            axes = panels[row][column_number]
            axes.set(xticks=[], yticks=[])
            if row == 0:
                title = name.replace(" ", "\n", 1) if " " in name else f"{name}\n"
                axes.set_title(title, fontsize=SMALL_FONT, pad=2)
            if column_number == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=SMALL_FONT, labelpad=2)
            below = "none"
            if found := by_name.get(name):
                own = np.nanmax(np.abs(found.weights))
                scale = own if found.variant.convolution else largest
                _draw_map(axes, grey, found.weights, point, scale)
                below = f"{own:.2g}"
            else:
                axes.set_box_aspect(height / width)
            axes.set_xlabel(below, fontsize=SMALL_FONT, labelpad=1)
    figure.supxlabel(
        "ring: the query; below: the largest weight. The darker, the more:\n"
        "one scale a row, another with convolution",
        fontsize=SMALL_FONT,
    )
    save_figure(figure, path)


def _draw_map(
    axes: Axes, grey: np.ndarray, weights: np.ndarray, point: tuple[float, float], largest: float
) -> None:
    height, width = grey.shape
    extent = (0, width, height, 0)
    axes.imshow(1 - (1 - grey) * (1 - _PALEST), cmap="gray", vmin=0, vmax=1, extent=extent)
    shares = np.nan_to_num(np.abs(weights) / largest)
    ink = _WEIGHTS(_LIGHTEST_INK + (1 - _LIGHTEST_INK) * shares)
    ink[..., 3] = _THICKEST * np.sqrt(shares)
    axes.imshow(ink, extent=extent, interpolation="nearest")
    x, y = point[0] * width, point[1] * height
    for colour, line in (("white", 2.0), ("black", 0.8)):
        axes.plot(
            x, y, "o", markersize=5, markerfacecolor="none", markeredgecolor=colour,
            markeredgewidth=line,
        )  # fmt: skip
    axes.set(xlim=(0, width), ylim=(height, 0))


_PANEL, _MARGINS = 1.35, 0.85  # inches
_BOUND = dict(color="0.5", linewidth=0.8)
_LIMIT = dict(color="0.5", linewidth=0.8, linestyle=":")
_LEAST = 1e-9  # below it there is only rounding


def draw_spectra(results: Sequence[LayerResult], path: Path) -> None:
    """A PNG with a panel for each layer on one image: singular values over their number, and min(N, d).

    Of the first head, window and channel that were measured; ranks are in the order of the variants.
    """
    figure = Figure((WIDTH, _PANEL * len(results) + _MARGINS), layout="constrained")
    panels = figure.subplots(len(results), 1, squeeze=False)[:, 0]
    for axes, result in zip(panels, results, strict=True):
        _draw_layer(axes, result)
    panels[-1].set_xlabel("number of the singular value", fontsize=FONT)
    figure.supylabel("singular value / largest", fontsize=FONT)
    names = in_order(m.variant.name for result in results for m in result.variants)
    figure.legend(
        [Line2D([], [], **style) for style in (*map(line_style, names), _BOUND, _LIMIT)],
        [*names, "min(N, d)", f"{TOLERANCE:g}: above, it counts to the rank"],
        loc="outside lower center",
        ncols=2,
        fontsize=SMALL_FONT,
        frameon=False,
        handlelength=3,
    )
    save_figure(figure, path)


def _draw_layer(axes: Axes, result: LayerResult) -> None:
    axes.set(xscale="log", yscale="log")
    ranks = []
    for measured in result.variants:
        first = measured.spectra[0]
        values = [value for value in first.spectrum.values if value > _LEAST]
        axes.plot(range(1, len(values) + 1), values, **line_style(measured.variant.name))
        ranks.append(_rank(first))
    axes.axhline(TOLERANCE, **_LIMIT)
    axes.axvline(result.bound, **_BOUND)
    axes.set_ylim(_LEAST, 3)
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=SMALL_FONT)
    shown = result.variants[0].spectra[0]
    size = " x ".join(map(str, shown.spectrum.shape))
    axes.set_title(
        f"layer {result.layer}, head {shown.head}, {size}, min(N, d) = {result.bound}\n"
        f"rank {', '.join(ranks)}",
        fontsize=SMALL_FONT,
    )


def _rank(found: HeadSpectrum) -> str:
    least = "≥" if found.spectrum.is_lower_bound else ""
    return f"{least}{found.spectrum.rank}"


_HEIGHT = 3.4  # inches
_PANELS = {
    "normalised_entropy": "entropy / log N",
    "effective_tokens": "effective tokens exp(H)",
    "top_mass": f"mass of the top {TOP}",
    "gini": "Gini coefficient",
}
_GROUP = 0.84  # of the room of a layer
_ERROR_BAR = dict(ecolor="0.35", elinewidth=0.7, capsize=1.2)


def draw_statistics(summaries: Sequence[LayerSummary], path: Path) -> None:
    """A PNG of four panels of bars by layer and variant, with the 95 % confidence interval over images."""
    figure = Figure((WIDTH, _HEIGHT), layout="constrained")
    names = in_order(name for summary in summaries for name in summary.sharpness)
    panels = figure.subplots(2, 2, sharex=True).flat
    for axes, (statistic, label) in zip(panels, _PANELS.items(), strict=True):
        _draw_panel(axes, summaries, names, statistic)
        axes.set_title(label, fontsize=FONT)
    figure.supxlabel("layer (stage.block)", fontsize=FONT)
    figure.legend(
        [Patch(**bar_style(name)) for name in names],
        names,
        loc="outside upper center",
        ncols=2,
        fontsize=SMALL_FONT,
        frameon=False,
        handlelength=2.4,
        handleheight=1.1,
    )
    save_figure(figure, path)


def _draw_panel(
    axes: Axes, summaries: Sequence[LayerSummary], names: Sequence[str], statistic: str
) -> None:
    width = _GROUP / len(names)
    for number, name in enumerate(names):
        places, values, errors = [], [], []
        for group, summary in enumerate(summaries):
            if name in summary.sharpness:
                found = summary.sharpness[name][statistic]
                places.append(group - _GROUP / 2 + (number + 0.5) * width)
                values.append(found.mean)
                errors.append(0 if found.half_width == inf else found.half_width)
        yerr = errors if any(errors) else None
        axes.bar(places, values, width, yerr=yerr, error_kw=_ERROR_BAR, **bar_style(name))
    if statistic == "effective_tokens":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05)
    axes.set_xticks(range(len(summaries)), [summary.layer for summary in summaries])
    axes.tick_params(labelsize=SMALL_FONT)
