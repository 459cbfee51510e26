"""How sharp the weights of each layer are, as bars."""

from collections.abc import Sequence
from math import inf
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .confidence import LayerSummary
from .statistics import TOP
from .style import FONT, SMALL_FONT, WIDTH, bar_style, in_order, save

_HEIGHT = 3.4  # inches
_PANELS = {
    "normalised_entropy": "entropy / log N",
    "effective_tokens": "effective tokens exp(H)",
    "top_mass": f"mass of the top {TOP}",
    "gini": "Gini coefficient",
}
_GROUP = 0.84  # of the room of a layer


def draw_statistics(summaries: Sequence[LayerSummary], path: Path) -> None:
    """Four panels of bars by layer and variant, with the 95 % confidence interval over images.

    Args:
        summaries: of the layers.
        path: PNG.
    """
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
    save(figure, path)


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
        axes.bar(places, values, width, **bar_style(name))
        if any(errors):
            axes.errorbar(
                places, values, errors, fmt="none", ecolor="0.35", elinewidth=0.7, capsize=1.2
            )
    if statistic == "effective_tokens":
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.05)
    axes.set_xticks(range(len(summaries)), [summary.layer for summary in summaries])
    axes.tick_params(labelsize=SMALL_FONT)
