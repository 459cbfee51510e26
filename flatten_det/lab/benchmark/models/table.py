"""Results on the terminal and in Markdown."""

from collections.abc import Iterator

from rich.table import Table

from ..tables import make_markdown, make_table, number
from .comparison import Comparison
from .result import Result

_COLUMNS = {
    "size": "left",
    "model": "left",
    "ms": "right",
    "quartiles": "right",
    "host ms": "right",
    "speed-up": "right",
    "images/s": "right",
    "Mpx/s": "right",
    "peak MiB": "right",
    "GMACs": "right",
    "params M": "right",
    "note": "left",
}


def make_tables(comparison: Comparison) -> Iterator[Table]:
    """One table for each mode, dtype and batch, without columns that would be empty."""
    for kind in comparison.kinds:
        yield make_table(_title(comparison, kind), _COLUMNS, _rows(comparison, kind))


def to_markdown(comparison: Comparison) -> str:
    """The same tables, and what their columns mean."""
    tables = [
        make_markdown(_title(comparison, kind), _COLUMNS, _rows(comparison, kind))
        for kind in comparison.kinds
    ]
    return "\n".join([*tables, explanation(), ""])


def explanation() -> str:
    """What the columns mean."""
    return (
        "Size: height x width. Times: median and quartiles of a call on the whole batch; of detectors and "
        "segmentors without post-processing. Host: until all is launched on a GPU. Speed-up: median of the "
        "ratios of pairs in one round. Peak memory: what a call takes beyond weights and images. GMACs: "
        "multiply-adds for one image, attention included."
    )


def _title(comparison: Comparison, kind: str) -> str:
    return f"{kind}; speed-up over {comparison.baseline}"


def _rows(comparison: Comparison, kind: str) -> list[list[str]]:
    return [[str(r.setting.size), *_figures(comparison, r)] for r in comparison.of(kind)]


def _figures(comparison: Comparison, result: Result) -> list[str]:
    first, third = result.timing.quartiles if result.timing else (None, None)
    peak, macs, parameters = result.peak_bytes, result.macs, result.cost.parameters
    return [
        result.name,
        number(result.seconds and result.seconds * 1e3, ".4g"),
        "" if first is None else f"{first * 1e3:.4g}-{third * 1e3:.4g}",
        number(result.host_seconds and result.host_seconds * 1e3, ".4g"),
        number(comparison.speedup(result), ".2f", "x"),
        number(result.images_per_second, ".3g"),
        number(result.megapixels_per_second, ".3g"),
        number(None if peak is None else peak / 2**20, ".1f"),
        number(None if macs is None else macs / 1e9, ".4g"),
        number(None if parameters is None else parameters / 1e6, ".1f"),
        result.note,
    ]
