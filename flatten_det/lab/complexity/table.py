"""Counts on the terminal and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from .counter import SAMPLING, Complexity
from .paper import PaperComparison, Published


def module_table(counted: Complexity, depth: int) -> Table:
    """Parameters and multiply-adds of the modules up to ``depth`` levels below the whole."""
    table = Table("module")
    for heading in ("parameters", "multiply-adds", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, parameters in counted.parameters_by_module.items():
        level = name.count(".") + 1 if name else 0
        macs = counted.macs_by_module.get(name)
        if level > depth or not (parameters or macs):
            continue
        table.add_row(
            "  " * (level - 1) + name.rpartition(".")[2] if name else "total",
            f"{parameters:,}",
            "-" if macs is None else f"{macs / 1e9:.3f} G",
            "-" if macs is None else f"{macs / max(counted.macs, 1):.1%}",
            end_section=not name,
        )
    return table


def uncounted_lines(counted: Complexity) -> Iterator[str]:
    """One line for each operator that ran and is in no number."""
    for name, calls in counted.uncounted.items():
        reason = (
            "sampling, which papers do not count"
            if name in SAMPLING
            else "no formula is known: give it one with torch.utils.flop_counter.register_flop_formula"
        )
        yield f"not counted: {name}, {calls} {'call' if calls == 1 else 'calls'}: {reason}"


def as_json(counted: Complexity) -> dict[str, Any]:
    """Everything that was counted; modules that were not called have no multiply-adds."""
    return {
        "parameters": counted.parameters,
        "multiply_adds": counted.macs,
        "modules": {
            name: {"parameters": parameters, "multiply_adds": counted.macs_by_module.get(name)}
            for name, parameters in counted.parameters_by_module.items()
            if name
        },
        "operators": counted.macs_by_operator,
        "uncounted": counted.uncounted,
    }


def paper_table(rows: Sequence[PaperComparison]) -> Table:
    """Both counts beside what is published."""
    table = Table("model")
    for heading in ("size", "params", "(published)", "published", "complete", "paper style"):
        table.add_column(heading, justify="right")
    for row in rows:
        height, width = row.count.size
        published = row.published
        table.add_row(
            row.title,
            f"{height}x{width}",
            f"{row.count.complete.parameters / 1e6:.1f} M",
            "-" if published is None else f"{published.mparams} M",
            "-" if published is None else f"{published.gflops} G",
            _beside(row.count.complete.macs, published),
            _beside(row.count.paper_style, published),
        )
    return table


def _beside(macs: int, published: Published | None) -> str:
    value = f"{macs / 1e9:.1f} G"
    return value if published is None else f"{value} {macs / 1e9 / published.gflops - 1:+6.1%}"


def paper_json(rows: Sequence[PaperComparison]) -> list[dict[str, Any]]:
    """The table's rows; multiply-adds and parameters as whole numbers."""
    return [
        {
            "model": row.title,
            "shape": list(row.count.size),
            "parameters": row.count.complete.parameters,
            "multiply_adds": row.count.complete.macs,
            "uncounted": row.count.complete.uncounted,
            "paper_style": {
                "multiply_adds": row.count.paper_style,
                "modules": row.count.modules,
                "softmax_products": row.count.softmax,
            },
            "published": row.published
            and {
                "multiply_adds": row.published.gflops * 10**9,
                "parameters": row.published.mparams * 10**6,
            },
            "explanation": row.explanation,
        }
        for row in rows
    ]
