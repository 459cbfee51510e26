"""Singular values of the attention matrices of a head, layer by layer."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .measure import HeadSpectrum, LayerResult
from .spectrum import TOLERANCE
from .style import FONT, SMALL_FONT, WIDTH, in_order, line_style, save

_PANEL, _MARGINS = 1.35, 0.85  # inches
_BOUND = dict(color="0.5", linewidth=0.8)
_LIMIT = dict(color="0.5", linewidth=0.8, linestyle=":")
_LEAST = 1e-9  # below it there is only rounding


def draw_spectra(results: Sequence[LayerResult], path: Path) -> None:
    """A panel for each layer: singular values over their number, both logarithmic, and min(N, d).

    Of the first head, window and channel that were measured; ranks are in the order of the variants.

    Args:
        results: layers on one image, with spectra.
        path: PNG.
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
    save(figure, path)


def _draw_layer(axes: Axes, result: LayerResult) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
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
