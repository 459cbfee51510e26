"""Results as a picture: how time, memory and multiply-adds grow with the image."""

from math import log, prod
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from ..report import write_figure
from .candidates import is_flatten
from .comparison import Comparison
from .curves import QUANTITIES
from .settings import Size

# In inches: the column of a paper.
_WIDTH, _HEIGHT, _MARGINS, _LINE = 3.5, 2.0, 0.6, 0.13
_FONT, _SMALL_FONT = 7, 6
_DPI = 220
# Units of the axes, and what divides the values.
_UNITS = {
    "time": ("s per call", 1),
    "peak memory": ("MiB per call", 2**20),
    "multiply-adds": ("GMACs per image", 1e9),
}
# Told apart without colour too.
_MARKERS, _LINES = "os^DvPX*<>", ("-", "--", "-.", ":")
_ROOM = 0.028  # of the axis for a character of a tick's label


def draw(comparison: Comparison, title: str, path: Path) -> None:
    """A column for each mode, dtype and batch, a panel in it for each quantity, logarithmic both ways.

    The legends give the fitted exponents. A ring marks where a FLatten model falls below the one of the
    ring's colour.

    Args:
        comparison: the results.
        title: such as the device.
        path: PNG or whatever matplotlib knows.
    """
    kinds = comparison.kinds
    quantities = [q for q in QUANTITIES if any(QUANTITIES[q](r) for r in comparison.results)]
    rows = max(len(quantities), 1)
    figure = Figure(figsize=(_WIDTH * len(kinds), _HEIGHT * rows + _MARGINS), layout="constrained")
    panels = figure.subplots(rows, len(kinds), squeeze=False, sharex="col", sharey="row")
    for column, kind in enumerate(kinds):
        panels[0][column].set_title(kind, fontsize=_FONT)
        for row, quantity in enumerate(quantities):
            _draw_panel(panels[row][column], comparison, kind, quantity)
        sizes = dict.fromkeys(result.setting.size for result in comparison.of(kind))
        _name_sizes(panels[-1][column], list(sizes))
    for row, quantity in enumerate(quantities):
        panels[row][0].set_ylabel(f"{quantity}, {_UNITS[quantity][0]}", fontsize=_FONT)
    side = comparison.fit_from**0.5
    figure.legend(
        [Line2D([], [], **_style(comparison, name)) for name in comparison.names],
        comparison.names,
        title=f"image, px; p: growth as pixels$^p$, from {side:.0f}$^2$ px on; ring: from here on\n"
        "a FLatten model lies below the one of the ring's colour",
        title_fontsize=_SMALL_FONT,
        loc="outside lower center",
        ncols=2 * len(kinds),
        fontsize=_SMALL_FONT,
        handlelength=3.5,
        frameon=False,
    )
    figure.suptitle(title, fontsize=_FONT)
    write_figure(figure, path, _DPI)


def _draw_panel(axes: Axes, comparison: Comparison, kind: str, quantity: str) -> None:
    unit = _UNITS[quantity][1]
    axes.set_xscale("log")
    axes.set_yscale("log")
    for name in comparison.names:
        points = comparison.curve(kind, name, quantity).points
        exponent = comparison.exponent(kind, name, quantity)
        axes.plot(
            list(points),
            [value / unit for value in points.values()],
            **_style(comparison, name),
            label="" if exponent is None else f"{exponent:.2f}",
        )
    _mark_crossovers(axes, comparison, kind, quantity)
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.tick_params(labelsize=_SMALL_FONT)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=_SMALL_FONT)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            title="p",
            title_fontsize=_SMALL_FONT,
            fontsize=_SMALL_FONT,
            loc="best",
            handlelength=3.5,
        )


def _mark_crossovers(axes: Axes, comparison: Comparison, kind: str, quantity: str) -> None:
    found = {
        pair: crossover
        for pair, crossover in comparison.crossovers(kind, quantity).items()
        if crossover.pixels is not None
    }
    ordered = sorted(found.items(), key=lambda item: item[1].pixels)
    for number, ((_, theirs), crossover) in enumerate(ordered):
        place = crossover.pixels, crossover.value / _UNITS[quantity][1]
        axes.plot(
            *place,
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor=_colour(comparison, theirs),
            markeredgewidth=0.8,
        )
        # By turns on both sides of the curves, because rings lie close together.
        below = number % 2 == 1
        axes.annotate(
            f"{crossover.pixels**0.5:.0f}$^2$",
            place,
            xytext=(4, -9) if below else (-4, 6),
            textcoords="offset points",
            ha="left" if below else "right",
            fontsize=_SMALL_FONT,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.3),
        )


def _style(comparison: Comparison, name: str) -> dict[str, object]:
    number = comparison.names.index(name)
    return dict(
        color=_colour(comparison, name),
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=3.5,
        linestyle=_LINES[number % len(_LINES)],
        linewidth=1.6 if is_flatten(name) else 1,
    )


def _colour(comparison: Comparison, name: str) -> str:
    return f"C{comparison.names.index(name)}"


def _name_sizes(axes: Axes, sizes: list[Size]) -> None:
    """Ticks at the sizes measured, from the largest down as far as their labels have room."""
    low, high = (log(end) for end in axes.get_xlim())
    named: list[tuple[Size, str]] = []
    for size in sorted(sizes, key=lambda size: prod(size.hw), reverse=True):
        label = f"{size.height}$^2$" if size.height == size.width else f"{size}"
        room = _ROOM * len(label.replace("$^2$", "2"))
        if not named or log(named[-1][0].pixels / size.pixels) / (high - low) > room:
            named.append((size, label))
    axes.set_xticks([size.pixels for size, _ in named], [label for _, label in named])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
