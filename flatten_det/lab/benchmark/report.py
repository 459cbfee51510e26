"""Results as tables and as files, each written whole or not at all."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.table import Table

from ...cli import make_console, say
from ...files.atomic import write_atomically
from .machine import describe_machine, device_name
from .run import Benchmark, Comparison, Result

JSON, CSV, MARKDOWN, FIGURE = "results.json", "results.csv", "table.md", "figure.png"
_NOTE = "note"
Shown = tuple[str, Mapping[str, str], Sequence[Sequence[str]]]  # what make_table takes


def write_json(content: object, path: Path) -> None:
    """Write indented JSON. Infinite and undefined numbers become null, which JSON has no other word for."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, text.encode())


def _finite(content: object) -> object:
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows that all have the same keys, with a header; None is an empty field."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue().encode())


def save_figure(figure: Figure, path: Path, dpi: int = 220, colours: int | None = 64) -> None:
    """Write a PNG, of few colours: drawings look the same, at a third of the size. None: of all."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi)
    if colours is not None:
        with Image.open(content) as image:
            content = io.BytesIO()
            image.convert("RGB").quantize(colours).save(content, "png", optimize=True)
    write_atomically(path, content.getvalue())


def number(value: float | None, form: str, suffix: str = "") -> str:
    """Formatted, or nothing for None."""
    return "" if value is None else f"{value:{form}}{suffix}"


def make_table(title: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without columns that would be empty, in a section for each value of the first column.

    ``columns`` are ``'left'`` or ``'right'`` by name; one called ``note`` may be wrapped.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    used = [any(column) for column in zip(*rows, strict=True)]
    for name, justify in compress(columns.items(), used):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name != _NOTE)
    previous = None
    for first, *rest in rows:
        if first != previous:
            table.add_section()
        table.add_row(*compress(["" if first == previous else first, *rest], used))
        previous = first
    return table


def make_markdown(title: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> str:
    """The same for GitHub and the like, ending in a line break."""
    used = [any(column) for column in zip(*rows, strict=True)]
    rule = {"left": "---", "right": "---:"}
    lines = [list(compress(columns, used)), [rule[j] for j in compress(columns.values(), used)]]
    lines += [[cell.replace("|", "\\|") for cell in compress(row, used)] for row in rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


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
        left = (*list(rows[0])[:2], _NOTE)
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
