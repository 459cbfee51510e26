"""Results on the terminal."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.table import Table

from ..tables import make_table, number
from .result import Result

_COLUMNS = {
    "shape": "left",
    "candidate": "left",
    "ms": "right",
    "quartiles": "right",
    "speed-up": "right",
    "error": "right",
    "peak MiB": "right",
    "in units": "right",
    "of copy": "right",
    "note": "left",
}


def make_tables(results: Sequence[Result], baseline: str) -> Iterable[Table]:
    """One table for each level, dtype and mode, without columns that would be empty."""

    def kind(result: Result) -> tuple[str, str, bool, str]:
        setting = result.setting
        return setting.level, setting.dtype, setting.amp, setting.mode

    for (level, dtype, amp, mode), group in groupby(sorted(results, key=kind), key=kind):
        title = f"{level}, {mode}, {dtype}{' AMP' if amp else ''}; speed-up over {baseline}"
        yield make_table(title, _COLUMNS, [[_shape(cell), *_figures(cell)] for cell in group])


def explanation() -> str:
    """What the columns mean."""
    return (
        "Times: median and quartiles of a call. Speed-up: median of the ratios of pairs in one round. "
        "Error: the largest relative one of output and gradients, against the equation in float64. "
        "Unit: a tensor of batch x tokens x channels. Of copy: bytes that must move / time / bandwidth "
        "of a copy."
    )


def _shape(result: Result) -> str:
    setting = result.setting
    return f"{setting.case.name} x{setting.batch}"


def _figures(result: Result) -> list[str]:
    timing, check = result.timing, result.check
    first, third = timing.quartiles if timing else (None, None)
    return [
        result.candidate,
        number(timing and timing.median * 1e3, ".4g"),
        "" if timing is None else f"{first * 1e3:.4g}-{third * 1e3:.4g}",
        number(result.speedup, ".2f", "x"),
        number(check and check.error, ".1e"),
        number(result.peak_mib, ".1f"),
        number(result.peak_units, ".1f"),
        number(result.floor_fraction, ".0%"),
        result.note,
    ]
