"""Results as tables for a terminal."""

from collections.abc import Sequence
from math import inf

from rich.table import Table

from .confidence import Estimate, LayerSummary
from .measure import LayerResult, Measured
from .statistics import TOP

_COLUMNS = {
    "entropy": "entropy, nats",
    "normalised_entropy": "/ log N",
    "effective_tokens": "effective tokens",
    "top_mass": f"top {TOP} mass",
    "gini": "Gini",
}


def sharpness_table(summaries: Sequence[LayerSummary]) -> Table:
    """Means over images, heads and queries; ± half the 95 % confidence interval over images."""
    table = Table("layer", "weights", *_COLUMNS.values(), title="How sharp the weights are")
    for summary in summaries:
        for variant, values in summary.sharpness.items():
            table.add_row(summary.layer, variant, *(_show(values[name]) for name in _COLUMNS))
        table.add_section()
    return table


def rank_table(results: Sequence[LayerResult]) -> Table:
    """Ranks of each layer on an image, from the least to the largest of heads, windows and channels."""
    table = Table("layer", "weights", "matrix", "min(N, d)", "rank", title="Numerical rank")
    for result in results:
        for measured in result.variants:
            if measured.spectra:
                shape = " x ".join(map(str, measured.spectra[0].spectrum.shape))
                row = (measured.variant.name, shape, str(result.bound), _ranks(measured))
                table.add_row(result.layer, *row)
        table.add_section()
    return table


def order_lines(summaries: Sequence[LayerSummary]) -> list[str]:
    """Whether entropy grows from softmax over focused to plain linear attention, layer by layer."""
    return [
        f"layer {summary.layer}: entropy of {step.lower} < {step.higher} {step.verdict} "
        f"({_show_difference(step.difference)} of log N, {step.difference.images} images)"
        for summary in summaries
        for step in summary.order
    ]


def _ranks(measured: Measured) -> str:
    ranks = [s.spectrum.rank for s in measured.spectra]
    least = "≥ " if any(s.spectrum.is_lower_bound for s in measured.spectra) else ""
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    return least + span


def _show(value: Estimate) -> str:
    shown = f"{value.mean:.3f}"
    return shown if value.half_width == inf else f"{shown} ± {value.half_width:.3f}"


def _show_difference(value: Estimate) -> str:
    shown = f"{value.mean:+.2g}"
    return shown if value.half_width == inf else f"{shown} ± {value.half_width:.2g}"
