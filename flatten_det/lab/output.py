"""What experiments leave behind: files of JSON and CSV, tables, figures and the styles of their lines.

Each file is written whole or not at all.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from ..files.atomic import write_atomically

_NOTE = "note"
# Told apart without colour: markers first, then dashes; from dark to light.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_DASHES = ("-", (0, (5, 2)), (0, (1, 1)), (0, (5, 1, 1, 1)))
_COLOURS = ("#1b1b3a", "#b5651d", "#3b528b", "#2a9d6f", "#7a7a7a")
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
    columns = {name: columns[name] for name in compress(columns, used)}
    return f"**{title}**\n\n{markdown_table(columns, [list(compress(row, used)) for row in rows])}"


def markdown_table(columns: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, ending in a line break; ``columns`` are ``'left'`` or ``'right'`` by name."""
    rule = {"left": "---", "right": "---:"}
    lines = [list(columns), [rule[justify] for justify in columns.values()]]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def line_style(index: int) -> dict[str, Any]:
    """Of the line of the variant or run of this number, for ``Axes.plot``."""
    dashes = _DASHES[index % len(_DASHES)]
    return dict(marker_style(index), linestyle=dashes, linewidth=1.3, markersize=4)


def marker_style(index: int) -> dict[str, Any]:
    """Of its markers, if there is no line."""
    return dict(color=_COLOURS[index % len(_COLOURS)], marker=_MARKERS[index % len(_MARKERS)])
