"""Results on the terminal."""

from collections.abc import Iterable, Sequence
from itertools import compress, groupby

from rich.table import Table

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
        table = Table(title=title, title_justify="left", title_style="bold")
        rows = [[_shape(cell), *_figures(cell)] for cell in group]
        used = [any(column) for column in zip(*rows, strict=True)]
        for name, justify in compress(_COLUMNS.items(), used):
            table.add_column(name, justify=justify, overflow="fold", no_wrap=name != "note")
        previous = None
        for row in rows:
            if row[0] == previous:
                row[0] = ""
            else:
                table.add_section()
                previous = row[0]
            table.add_row(*compress(row, used))
        yield table


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
        _text(timing and timing.median * 1e3, ".4g"),
        "" if timing is None else f"{first * 1e3:.4g}-{third * 1e3:.4g}",
        _text(result.speedup, ".2f", "x"),
        _text(check and check.error, ".1e"),
        _text(result.peak_mib, ".1f"),
        _text(result.peak_units, ".1f"),
        _text(result.floor_fraction, ".0%"),
        result.note,
    ]


def _text(value: float | None, form: str, suffix: str = "") -> str:
    return "" if value is None else f"{value:{form}}{suffix}"
