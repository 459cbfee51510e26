"""Attention weights drawn over the image, one variant beside the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .maps import WeightMap
from .style import SMALL_FONT, WIDTH, in_order, save

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
    """A row of maps for each layer; below each map its largest weight.

    The maps of a row share one scale, so that flat weights look flat. Those with a convolution, which may be
    a hundred times as large, have one of their own.

    Args:
        grey: the image ``(H, W)``, 0 to 1.
        rows: the maps by the name of their layer.
        point: ``(x, y)`` of the query, 0 to 1: the ring.
        path: PNG.
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
            axes.set_xticks([])
            axes.set_yticks([])
            if row == 0:
                axes.set_title(_in_two_lines(name), fontsize=SMALL_FONT, pad=2)
            if column_number == 0:
                axes.set_ylabel(f"layer {layer}", fontsize=SMALL_FONT, labelpad=2)
            if name in by_name:
                found = by_name[name]
                own = np.nanmax(np.abs(found.weights))
                _draw_map(
                    axes, grey, found.weights, point, own if found.variant.convolution else largest
                )
                axes.set_xlabel(f"{own:.2g}", fontsize=SMALL_FONT, labelpad=1)
            else:
                axes.set_xlabel("none", fontsize=SMALL_FONT, labelpad=1)
                axes.set_box_aspect(height / width)
    figure.supxlabel(
        "ring: the query; below: the largest weight. The darker, the more:\n"
        "one scale a row, another with convolution",
        fontsize=SMALL_FONT,
    )
    save(figure, path)


def _draw_map(
    axes: Axes,
    grey: np.ndarray,
    weights: np.ndarray,
    point: tuple[float, float],
    largest: float,
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
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _in_two_lines(name: str) -> str:
    first, _, rest = name.partition(" ")
    return f"{first}\n{rest}" if rest else f"{first}\n"
