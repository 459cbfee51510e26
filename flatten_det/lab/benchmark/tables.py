"""Tables on the terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from itertools import compress

from rich.console import Console
from rich.table import Table

_LEAST_WIDTH = 130  # in characters, where no terminal says how wide it is
_NOTE = "note"


def number(value: float | None, form: str, suffix: str = "") -> str:
    """Formatted, or nothing for None."""
    return "" if value is None else f"{value:{form}}{suffix}"


def make_table(title: str, columns: Mapping[str, str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without columns that would be empty, in a section for each value of the first column.

    Args:
        title: above it.
        columns: name -> ``'left'`` or ``'right'``; one called ``note`` may be wrapped.
        rows: a text for each column.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    used = _used(rows)
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
    used = _used(rows)
    rule = {"left": "---", "right": "---:"}
    lines = [list(compress(columns, used)), [rule[j] for j in compress(columns.values(), used)]]
    lines += [[cell.replace("|", "\\|") for cell in compress(row, used)] for row in rows]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def make_console() -> Console:
    """A console for tables that are not folded where the output is a file."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _LEAST_WIDTH)
    return console


def _used(rows: Sequence[Sequence[str]]) -> list[bool]:
    return [any(column) for column in zip(*rows, strict=True)]
