"""Comparing the variants of an ablation: statistics, table and figure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from math import comb
from pathlib import Path
from statistics import fmean, mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.config import Config
from scipy import stats

from ...data.shapes.options import ShapesOptions
from ...data.shapes.render import guessing_iou
from ...errors import UserError
from ...files.atomic import write_atomically
from ..output import (
    line_style,
    make_markdown,
    marker_style,
    number,
    save_figure,
    write_json,
)
from .run import Finished

_COLUMNS = {
    "variant": "left",
    "parameters": "right",
    "mean ± std": "right",
    "each seed": "left",
    "difference": "right",
    "p": "right",
    "minutes": "right",
}
_LEVELS = (":", (0, (8, 4)))
_FONT = 8


def chance_levels(cfg: Config, metric: str) -> dict[str, float]:
    """Levels of the mean IoU in per cent, by name; none for another metric or data without a legend.

    - ``guessing``: the legend is not seen.
    - ``legend unordered``: it is known how many cells of the legend have which class, as even weights over
      all tokens would tell, but not which; only for two classes.

    Objects and background are taken to be told apart exactly.
    """
    data = (cfg.get("val_dataloader") or {}).get("dataset", {})
    if metric != "mIoU" or not data.get("legend"):
        return {}
    classes = data.get("legend_classes", ShapesOptions.legend_classes)
    levels = {"guessing": _with_background(guessing_iou(classes), classes)}
    if classes == 2:
        least, most = data.legend
        right = mean(unordered_accuracy(cells) for cells in range(least, most + 1))
        levels["legend unordered"] = _with_background(right / (2 - right), classes)
    return levels


def unordered_accuracy(cells: int) -> float:
    """Share of objects that have the class of most cells of the legend, of two classes."""
    return sum(comb(cells, k) * max(k, cells - k) for k in range(cells + 1)) / (cells * 2**cells)


def _with_background(iou: float, classes: int) -> float:
    return 100 * (1 + classes * iou) / (classes + 1)


@dataclass(frozen=True)
class Paired:
    """A variant compared with the baseline over the seeds that both have."""

    difference: float  # mean of the differences, variant minus baseline
    error: float | None  # standard error of that mean; None with fewer than two seeds
    t: float | None  # difference / error; None where there is no error or it is 0
    p: float | None  # two-sided p-value of t with pairs - 1 degrees of freedom; None without t
    pairs: int  # seeds compared


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the sample's standard deviation (n - 1 in the denominator), None for one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def compare(variant: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """Paired t-test over seeds of values by seed, None without pairs; the order of the data is in common."""
    seeds = sorted(variant.keys() & baseline.keys())
    if not seeds:
        return None
    difference, deviation = mean_and_deviation([variant[seed] - baseline[seed] for seed in seeds])
    error = None if deviation is None else deviation / math.sqrt(len(seeds))
    if not error:
        return Paired(difference, error, None, None, len(seeds))
    t = difference / error
    return Paired(difference, error, t, float(2 * stats.t.sf(abs(t), len(seeds) - 1)), len(seeds))


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds."""

    variant: str
    values: dict[int, float]  # seed -> metric at the end
    # (iteration, metric), the mean over the seeds of validations that all of them have.
    curve: tuple[tuple[int, float], ...]
    mean: float  # of the values, as the deviation: see :func:`mean_and_deviation`
    deviation: float | None
    paired: Paired | None  # compared with the baseline; None for the baseline itself
    parameters: int  # of the model
    seconds: float  # of a training, mean


def summarize(outcomes: Sequence[Finished], metric: str, baseline: str) -> list[Summary]:
    """One summary for each variant, in the order of their first outcomes; UserError without such a metric."""
    values: dict[str, dict[int, float]] = {}
    for outcome in outcomes:
        if metric not in outcome.metrics:
            raise UserError(
                f"--metric {metric}: runs have the metrics {', '.join(sorted(outcome.metrics))}"
            )
        values.setdefault(outcome.variant, {})[outcome.seed] = outcome.metrics[metric]
    summaries = []
    for variant, of_seeds in values.items():
        own = [outcome for outcome in outcomes if outcome.variant == variant]
        paired = compare(of_seeds, values.get(baseline, {})) if variant != baseline else None
        summaries.append(
            Summary(
                variant,
                of_seeds,
                _curve(own, metric),
                *mean_and_deviation(list(of_seeds.values())),
                paired,
                own[0].parameters,
                sum(outcome.seconds for outcome in own) / len(own),
            )
        )
    return summaries


def _curve(runs: Sequence[Finished], metric: str) -> tuple[tuple[int, float], ...]:
    values: dict[int, list[float]] = {}
    for run in runs:
        for validation in run.validations:
            values.setdefault(validation["iteration"], []).append(validation["metrics"][metric])
    return tuple(
        (iteration, fmean(of_runs))
        for iteration, of_runs in sorted(values.items())
        if len(of_runs) == len(runs)
    )


def make_table(summaries: Sequence[Summary], metric: str, baseline: str) -> str:
    """The table in Markdown, ending in a line break."""
    rows = [
        (
            summary.variant,
            f"{summary.parameters:,}",
            _with_error(f"{summary.mean:.2f}", summary.deviation),
            ", ".join(f"{value:.2f}" for _, value in sorted(summary.values.items())),
            _difference(summary.paired),
            number(summary.paired.p if summary.paired else None, ".3g"),
            f"{summary.seconds / 60:.1f}",
        )
        for summary in summaries
    ]
    title = (
        f"{metric}; differences to {baseline}, ± standard error, paired by seed (two-sided t-test)"
    )
    return make_markdown(title, _COLUMNS, rows)


def save(
    outcomes: Sequence[Finished],
    metric: str,
    baseline: str,
    out: Path,
    command: str,
    levels: Mapping[str, float],
) -> str:
    """Write ``ablation.json``, ``ablation.md`` and ``ablation.png``; returns the table.

    ``levels`` are known values of the metric, by name, such as that of guessing.
    """
    summaries = summarize(outcomes, metric, baseline)
    table = make_table(summaries, metric, baseline)
    write_json(
        {
            "command": command,
            "metric": metric,
            "baseline": baseline,
            "levels": dict(levels),
            "variants": [asdict(summary) for summary in summaries],
            "runs": [asdict(outcome) for outcome in outcomes],
        },
        out / "ablation.json",
    )
    write_atomically(out / "ablation.md", table.encode())
    draw(summaries, metric, levels, out / "ablation.png")
    return table


def _difference(paired: Paired | None) -> str:
    return "" if paired is None else _with_error(f"{paired.difference:+.2f}", paired.error)


def _with_error(value: str, error: float | None) -> str:
    return value if error is None else f"{value} ± {error:.2f}"


def draw(
    summaries: Sequence[Summary], metric: str, levels: Mapping[str, float], path: Path
) -> None:
    """Draw the variants' curves, if there is more than one validation, and beside them all runs.

    Each of the ``levels``, values by name, is a horizontal line in both panels.
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
    save_figure(figure, path)


def _draw_curves(axes: Axes, summaries: Sequence[Summary]) -> None:
    for index, summary in enumerate(summaries):
        iterations, values = zip(*summary.curve, strict=True)
        axes.plot(iterations, values, label=summary.variant, **line_style(index))
    axes.set_xlabel("iteration", fontsize=_FONT)
    axes.set_title("mean over seeds", fontsize=_FONT)


def _draw_ends(axes: Axes, summaries: Sequence[Summary]) -> None:
    for place, summary in enumerate(summaries):
        style = marker_style(place)
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
