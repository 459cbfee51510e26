"""Results as pictures: bars for layers, curves over sizes for models."""

from collections.abc import Callable, Iterable
from itertools import product
from math import log
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter, NullLocator

from ..output import line_style, number, save_figure
from .growth import QUANTITIES, Growth, is_flatten
from .run import Comparison, Result

# In inches: of the bars.
_BAR_WIDTH, _GAP, _BAR_MARGINS, _LEAST_WIDTH, _BAR_HEIGHT = 0.22, 0.3, 1.2, 5.5, 3.2
_BAR_SHARE = 0.84  # of the room between two shapes
_SIDE_BY_SIDE = 3  # up to so many shapes
_WRONG, _NOTHING = "wrong", "none"
# In inches: the column of a paper, for the curves.
_WIDTH, _HEIGHT, _MARGINS = 3.5, 2.0, 0.6
_FONT, _SMALL_FONT = 7, 6
# Units of the axes, and what divides the values.
_UNITS = {
    "time": ("s per call", 1),
    "peak memory": ("MiB per call", 2**20),
    "multiply-adds": ("GMACs per image", 1e9),
}
_ROOM = 0.028  # of the axis for a character of a tick's label


def draw_bars(
    comparison: Comparison,
    title: str,
    path: Path,
    shape_of: Callable[[Result], str],
    memory_of: Callable[[Result], float | None],
) -> None:
    """A PNG of bars per shape and candidate, a panel of times and one of memory for each kind of settings.

    Above a bar of the times stands the speed-up over the baseline, or that the result was wrong.
    ``shape_of`` names a result's shape; ``memory_of`` is its peak in tensors of batch x tokens x channels.
    """
    results, names = comparison.results, comparison.names
    shapes = list(dict.fromkeys(map(shape_of, results)))

    def time_bar(result: Result) -> tuple[float | None, str]:
        if result.times is None:
            return None, _NOTHING
        label = _WRONG if result.is_wrong else number(comparison.speedup(result), ".2g", "x")
        return result.seconds * 1e3, label

    def memory_bar(result: Result) -> tuple[float | None, str]:
        value = memory_of(result)
        return value, _NOTHING if value is None else f"{value:.1f}"

    metrics = {f"time, with speed-up over {comparison.baseline}": time_bar}
    if any(memory_of(result) is not None for result in results):
        metrics["peak memory"] = memory_bar
    columns = len(metrics) if len(shapes) <= _SIDE_BY_SIDE else 1
    rows = len(comparison.kinds) * len(metrics) // columns
    width = max(len(shapes) * (_GAP + _BAR_WIDTH * len(names)) + _BAR_MARGINS, _LEAST_WIDTH)
    size = (columns * width, rows * _BAR_HEIGHT + _BAR_MARGINS)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, (kind, metric) in zip(panels.flat, product(comparison.kinds, metrics), strict=True):
        chosen = {(shape_of(r), r.name): metrics[metric](r) for r in comparison.of(kind)}
        for index, name in enumerate(names):
            offset = (index - (len(names) - 1) / 2) * _BAR_SHARE / len(names)
            bars = [chosen.get((shape, name), (None, "")) for shape in shapes]
            style = dict(width=0.92 * _BAR_SHARE / len(names), color=f"C{index}", label=name)
            _draw_bars(axes, offset, bars, style)
        unit = "units of batch x tokens x channels"
        if metrics[metric] is time_bar:
            unit = "ms per call (median)"
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.set_xticks(range(len(shapes)), shapes, fontsize=8)
        axes.set(xlabel="shape x batch", ylabel=unit, xlim=(-0.6, len(shapes) - 0.4))
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        axes.margins(y=0.15)
        axes.set_title(f"{kind}: {metric}", fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path, dpi=130)


def _draw_bars(
    axes: Axes, offset: float, bars: list[tuple[float | None, str]], style: dict
) -> None:
    """One candidate's bars, and what stands above each or in place of it."""
    places = [index + offset for index in range(len(bars))]
    heights = [float("nan") if value is None else value for value, _ in bars]
    axes.bar(places, heights, **style)
    for place, (value, label) in zip(places, bars, strict=True):
        xy, coords = (place, value), "data"
        if value is None:
            xy, coords = (place, 0), ("data", "axes fraction")
        axes.annotate(
            label,
            xy,
            xycoords=coords,
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7,
            rotation=90 if value is None or label == _WRONG else 0,
        )


def draw_curves(growth: Growth, title: str, path: Path) -> None:
    """A PNG with a column for each mode, dtype and batch, a panel in it for each quantity, all logarithmic.

    The legends give the fitted exponents. A ring marks where a FLatten model falls below the one of the
    ring's colour.
    """
    kinds, names = growth.kinds, growth.names
    quantities = [q for q in QUANTITIES if any(QUANTITIES[q](r) for r in growth.results)]
    styles = {
        name: line_style(index) | dict(markersize=3.5, linewidth=1.6 if is_flatten(name) else 1)
        for index, name in enumerate(names)
    }
    rows = max(len(quantities), 1)
    figure = Figure(figsize=(_WIDTH * len(kinds), _HEIGHT * rows + _MARGINS), layout="constrained")
    panels = figure.subplots(rows, len(kinds), squeeze=False, sharex="col", sharey="row")
    for column, kind in enumerate(kinds):
        panels[0][column].set_title(kind, fontsize=_FONT)
        for row, quantity in enumerate(quantities):
            _draw_panel(panels[row][column], growth, kind, quantity, styles)
        _name_sizes(panels[-1][column], {result.setting.case for result in growth.of(kind)})
    for row, quantity in enumerate(quantities):
        panels[row][0].set_ylabel(f"{quantity}, {_UNITS[quantity][0]}", fontsize=_FONT)
    figure.legend(
        [Line2D([], [], **style) for style in styles.values()],
        names,
        title=f"image, px; p: growth as pixels$^p$, from {growth.fit_from**0.5:.0f}$^2$ px on; ring: "
        "from here on\na FLatten model lies below the one of the ring's colour",
        title_fontsize=_SMALL_FONT,
        loc="outside lower center",
        ncols=2 * len(kinds),
        fontsize=_SMALL_FONT,
        handlelength=3.5,
        frameon=False,
    )
    figure.suptitle(title, fontsize=_FONT)
    save_figure(figure, path)


def _draw_panel(
    axes: Axes, growth: Growth, kind: str, quantity: str, styles: dict[str, dict]
) -> None:
    unit = _UNITS[quantity][1]
    axes.set(xscale="log", yscale="log")
    for name, style in styles.items():
        points = growth.curve(kind, name, quantity)
        label = number(growth.exponent(kind, name, quantity), ".2f")
        axes.plot(list(points), [y / unit for y in points.values()], **style, label=label)
    # Rings, where one curve falls below another.
    crossovers = growth.crossovers(kind, quantity).items()
    found = [(theirs, at) for (_, theirs), at in crossovers if at.pixels is not None]
    for index, (theirs, at) in enumerate(sorted(found, key=lambda item: item[1].pixels)):
        place = at.pixels, at.value / unit
        axes.plot(
            *place,
            marker="o",
            markersize=8,
            markerfacecolor="none",
            markeredgecolor=styles[theirs]["color"],
            markeredgewidth=0.8,
        )
        # By turns on both sides of the curves, because rings lie close together.
        below = index % 2 == 1
        axes.annotate(
            f"{at.pixels**0.5:.0f}$^2$",
            place,
            xytext=(4, -9) if below else (-4, 6),
            textcoords="offset points",
            ha="left" if below else "right",
            fontsize=_SMALL_FONT,
            bbox=dict(facecolor="white", edgecolor="none", alpha=0.7, pad=0.3),
        )
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(which="both", labelsize=_SMALL_FONT)
    if axes.get_legend_handles_labels()[0]:
        fonts = dict(title_fontsize=_SMALL_FONT, fontsize=_SMALL_FONT)
        axes.legend(title="p", **fonts, loc="best", handlelength=3.5)


def _name_sizes(axes: Axes, sizes: Iterable) -> None:
    """Ticks at the sizes measured, from the largest down as far as their labels have room."""
    low, high = (log(end) for end in axes.get_xlim())
    ticks: dict[int, str] = {}
    for size in sorted(sizes, key=lambda size: size.pixels, reverse=True):
        label = f"{size.height}$^2$" if size.height == size.width else f"{size}"
        room = _ROOM * len(label.replace("$^2$", "2"))
        if not ticks or log(min(ticks) / size.pixels) / (high - low) > room:
            ticks[size.pixels] = label
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
