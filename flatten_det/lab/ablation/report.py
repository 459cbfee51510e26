"""The outcome of an ablation as JSON, as a table in Markdown and as a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from ...errors import UserError
from ..benchmark.report import make_markdown, number, write_json, write_text
from .figure import draw
from .run import Finished
from .statistics import Paired, compare, mean_and_deviation

_COLUMNS = {
    "variant": "left",
    "parameters": "right",
    "mean ± std": "right",
    "each seed": "left",
    "difference": "right",
    "p": "right",
    "minutes": "right",
}


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds.

    Attributes:
        variant: name.
        values: seed -> metric at the end.
        curve: ``(iteration, metric)``, the mean over the seeds of validations that all of them have.
        mean, deviation: of the values; see :func:`~.statistics.mean_and_deviation`.
        paired: compared with the baseline; None for the baseline itself.
        parameters: of the model.
        seconds: of a training, mean.
    """

    variant: str
    values: dict[int, float]
    curve: tuple[tuple[int, float], ...]
    mean: float
    deviation: float | None
    paired: Paired | None
    parameters: int
    seconds: float


def summarize(outcomes: Sequence[Finished], metric: str, baseline: str) -> list[Summary]:
    """One summary for each variant, in the order of their first outcomes.

    Raises:
        UserError: A run has no such metric.
    """
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
            values.setdefault(validation.iteration, []).append(validation.metrics[metric])
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
    """Write ``ablation.json``, ``ablation.md`` and ``ablation.png`` into a folder.

    Args:
        outcomes: of the runs so far.
        metric: which of their metrics is compared.
        baseline: the variant that the others are compared with.
        out: folder.
        command: that made them.
        levels: known values of the metric, by name, such as that of guessing.

    Returns:
        The table.
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
    write_text(table, out / "ablation.md")
    draw(summaries, metric, levels, out / "ablation.png")
    return table


def _difference(paired: Paired | None) -> str:
    return "" if paired is None else _with_error(f"{paired.difference:+.2f}", paired.error)


def _with_error(value: str, error: float | None) -> str:
    return value if error is None else f"{value} ± {error:.2f}"
