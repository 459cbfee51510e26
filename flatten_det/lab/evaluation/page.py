"""The report as one page of HTML, and as tables on the console."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...errors import printable
from ...files.atomic import write_atomically
from ...predict.contact_sheet import html_page, html_text

_MOST_ROWS = 20  # of a table on the console
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em;
  color: #1b1b2b; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #bbb; }
table { border-collapse: collapse; font-size: 0.9em; margin: 1em 0; }
caption { text-align: left; font-weight: 600; padding: 0.3em 0; }
th, td { padding: 0.15em 0.7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; } thead th { position: sticky; top: 0; background: #fff; }
figure { margin: 1.5em 0; } img { max-width: 100%; height: auto; border: 1px solid #ddd; }
figcaption { font-size: 0.9em; color: #444; } .wide { overflow-x: auto; }
"""


@dataclass(frozen=True)
class Rows:
    """A table of texts; ``columns`` are its heads, and the first of them names what a row is about."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class PagePicture:
    """A picture beside the page; without a file, its caption alone."""

    file: str | None  # relative to the page
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page, with a heading."""

    title: str
    text: str
    parts: Sequence[Rows | PagePicture]


def write_page(path: Path, title: str, text: str, sections: Sequence[Section]) -> None:
    """Write the page, which loads nothing but its pictures. Names are text in it, whatever they hold."""
    lines = [f"<p>{html_text(text)}</p>"]
    for section in sections:
        lines.append(f"<h2>{html_text(section.title)}</h2>")
        if section.text:
            lines.append(f"<p>{html_text(section.text)}</p>")
        lines += [_part(part) for part in section.parts]
    write_atomically(path, html_page(title, _STYLE, lines).encode())


def _part(part: Rows | PagePicture) -> str:
    if isinstance(part, PagePicture):
        caption = html_text(part.caption)
        if part.file is None:
            return f"<p>{caption} (no picture)</p>"
        return (
            f'<figure><a href="{escape(quote(part.file))}"><img src="{escape(quote(part.file))}" '
            f'alt="{caption}" loading="lazy"></a><figcaption>{caption}</figcaption></figure>'
        )
    head = "".join(f"<th>{html_text(column)}</th>" for column in part.columns)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{html_text(cell)}</td>' for cell in row)}</tr>" for row in part.rows
    )
    return (
        f'<div class="wide"><table><caption>{html_text(part.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def print_rows(table: Rows, console: Console) -> None:
    """Print the first rows of a table, and how many more there are."""
    shown = Table(title=Text(printable(table.caption), "bold"), title_justify="left")
    for number, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row in table.rows[:_MOST_ROWS]:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    console.print(shown)
    if len(table.rows) > _MOST_ROWS:
        console.print(f"... and {len(table.rows) - _MOST_ROWS} more rows in index.html")
