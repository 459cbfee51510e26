"""The results of benchmarks on the screen and in files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console

from ...cli import make_console, say
from ...files.atomic import write_atomically
from ..output import Shown, make_markdown, make_table, number, write_csv, write_json
from .machine import describe_machine, device_name
from .run import Benchmark, Comparison, Result

JSON, CSV, MARKDOWN, FIGURE = "results.json", "results.csv", "table.md", "figure.png"


def time_cells(result: Result) -> dict[str, str]:
    """Median and quartiles in ms, for :meth:`~.run.Benchmark.cells`."""
    first, third = map(milliseconds, result.quartiles)
    return {"ms": milliseconds(result.seconds), "quartiles": first and f"{first}-{third}"}


def milliseconds(seconds: float | None) -> str:
    return number(seconds and seconds * 1e3, ".4g")


def tables(benchmark: Benchmark, comparison: Comparison) -> Iterator[Shown]:
    """Title, columns and rows of one table for each kind of settings, for :func:`make_table`."""
    for kind in comparison.kinds:
        rows = [benchmark.cells(comparison, result) for result in comparison.of(kind)]
        left = (*list(rows[0])[:2], "note")
        columns = {name: "left" if name in left else "right" for name in rows[0]}
        title = f"{kind}; speed-up over {comparison.baseline}"
        yield title, columns, [list(row.values()) for row in rows]


def write_markdown(
    command: str, remarks: Sequence[str], shown: Iterable[Shown], explanation: str, folder: Path
) -> None:
    """Write ``table.md``: the command, remarks such as the device, tables, and what is to be said of them."""
    parts = [f"`{command}`\n", *(f"{remark}\n" for remark in remarks)]
    text = "\n".join([*parts, *(make_markdown(*table) for table in shown), explanation, ""])
    write_atomically(folder / MARKDOWN, text.encode())


def show_results(
    benchmark: Benchmark, comparison: Comparison, command: str, remarks: Sequence[str]
) -> Console:
    """Print the command, remarks such as the device, and all tables; returns the console."""
    console = show_tables(command, remarks, tables(benchmark, comparison))
    console.print(benchmark.explanation, highlight=False)
    return console


def show_tables(command: str, remarks: Sequence[str], shown: Iterable[Shown]) -> Console:
    """Print a command, remarks, in which rich's markup counts, and tables; returns the console."""
    console = make_console()
    say(console, command)
    for remark in remarks:
        console.print(remark, highlight=False)
    for table in shown:
        console.print(make_table(*table))
    return console


def save_results(
    benchmark: Benchmark,
    comparison: Comparison,
    how: Mapping[str, object],
    device: torch.device,
    command: str,
    folder: Path,
) -> None:
    """Write ``results.json`` (machine, how it was measured, all times), ``results.csv`` and ``figure.png``.

    ``how`` is described at :class:`~.run.Benchmark`; the folder is made if need be.
    """
    head = {"command": command, "machine": describe_machine(device)}
    write_json(head | benchmark.content(comparison, how), folder / JSON)
    write_csv([benchmark.row(comparison, r) for r in comparison.results], folder / CSV)
    benchmark.draw(comparison, device_name(device), folder / FIGURE)
