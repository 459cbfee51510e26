"""What the reports have in common: their options and parts, the page of HTML, tables on the console."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...data.loading import ImageError
from ...errors import UserError, printable, warn_once
from ...files.atomic import refuse_overwriting, write_atomically
from ...predict.contact_sheet import html_page, html_text
from ...results.prediction import SCORE_THRESHOLD
from .collect import ImageFiles
from .detections import KEYS
from .figures import LARGEST_MATRIX, PAIRS, confused_pairs

JSON, PAGE = "report.json", "index.html"
_FIGURES = ("classes", "curves", "confusion", "kinds")
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
class ReportOptions:
    """What to write, and where."""

    out_dir: Path
    threshold: float = SCORE_THRESHOLD  # detections below do not count as errors, but for AP
    worst: int = 12  # pictures

    def check(self, inputs: Sequence[str | Path | None]) -> Callable[[ImageFiles], None]:
        """What refuses to write over one of these files, or over an image."""

        def refuse(images: ImageFiles) -> None:
            kinds = ("", *(f"{kind}_" for kind in KEYS))
            figures = [f"{kind}{figure}.png" for kind in kinds for figure in _FIGURES]
            pictures = map(_picture_name, range(1, self.worst + 1))
            outputs = [self.out_dir / name for name in (JSON, PAGE, *figures, *pictures)]
            refuse_overwriting(filter(None, [*inputs, *images.files]), outputs, "--out-dir")

        return refuse


@dataclass(frozen=True)
class Rows:
    """A table of texts; ``columns`` are its heads, and the first of them names what a row is about."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def print(self, console: Console) -> None:
        """Print the first rows, and how many more there are."""
        shown = Table(title=Text(printable(self.caption), "bold"), title_justify="left")
        for number, column in enumerate(self.columns):
            shown.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
        for row in self.rows[:_MOST_ROWS]:
            shown.add_row(*(Text(printable(cell)) for cell in row))
        console.print(shown)
        if len(self.rows) > _MOST_ROWS:
            console.print(f"... and {len(self.rows) - _MOST_ROWS} more rows in {PAGE}")

    def html(self) -> str:
        """For the page."""
        head = "".join(f"<th>{html_text(column)}</th>" for column in self.columns)
        cells = ("".join(f"<td>{html_text(cell)}</td>" for cell in row) for row in self.rows)
        body = "\n".join(f"<tr>{row}</tr>" for row in cells)
        return (
            f'<div class="wide"><table><caption>{html_text(self.caption)}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        )


@dataclass(frozen=True)
class PagePicture:
    """A picture beside the page; without a file, its caption alone."""

    file: str | None  # relative to the page
    caption: str

    def html(self) -> str:
        """For the page."""
        caption = html_text(self.caption)
        if self.file is None:
            return f"<p>{caption} (no picture)</p>"
        link = escape(quote(self.file))
        return (
            f'<figure><a href="{link}"><img src="{link}" alt="{caption}" loading="lazy"></a>'
            f"<figcaption>{caption}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Section:
    """A part of the page, with a heading."""

    title: str
    text: str
    parts: Sequence[Rows | PagePicture]


@dataclass(frozen=True)
class Report:
    """What was found."""

    content: dict[str, Any]  # of report.json
    sections: list[Section]  # of the page
    tables: list[Rows]  # of the console
    unreadable: UserError | None = None  # names the images that were left out


def write_page(path: Path, title: str, text: str, sections: Sequence[Section]) -> None:
    """Write the page, which loads nothing but its pictures. Names are text in it, whatever they hold."""
    lines = [f"<p>{html_text(text)}</p>"]
    for section in sections:
        lines.append(f"<h2>{html_text(section.title)}</h2>")
        if section.text:
            lines.append(f"<p>{html_text(section.text)}</p>")
        lines += [part.html() for part in section.parts]
    write_atomically(path, html_page(title, _STYLE, lines).encode())


def left_out_note(classes: Sequence[Any], shown: Sequence[Any]) -> str:
    """Say how many classes a table does not show; nothing if it shows all."""
    count = len(classes) - len(shown)
    return f" ({count} that are neither there nor predicted are left out)" if count else ""


def number_text(value: float | None) -> str:
    """A number from 0 to 1 with three digits; nothing for None and NaN."""
    return "" if value is None or np.isnan(value) else f"{value:.3f}"


def nan_last(value: float) -> float:
    """For sorting: a number as it is, NaN as the largest."""
    return np.inf if np.isnan(value) else value


def matrix_caption(classes: int, background: str) -> str:
    """What a picture of a confusion matrix shows; ``background`` says what its last row and column are."""
    if classes > LARGEST_MATRIX:
        return f"The most confused pairs of {classes} classes; the whole matrix is in {JSON}."
    row = f" The background stands for {background}." if background else ""
    return f"Truth by row, prediction by column, in % of the row.{row}"


def pairs_table(confusion: np.ndarray, names: Sequence[str], what: str) -> Rows:
    """The most confused pairs of classes; ``what`` is counted."""
    rows = [
        [f"{names[row]} → {names[column]}", f"{count:,}", f"{share:.1%}"]
        for row, column, count, share in confused_pairs(confusion, len(names))[:PAIRS]
    ]
    columns = ("pair", what, "of the true class")
    return Rows("Most confused classes, truth → prediction", columns, rows)


def _picture_name(number: int) -> str:
    """The file of a worst image's picture, below the page's folder."""
    return f"worst/{number:02d}.png"


@dataclass(frozen=True)
class WorstImage:
    """An image with many errors."""

    entry: dict[str, Any]  # of report.json
    path: str | None  # None: it is not known
    caption: str
    draw: Callable[[np.ndarray, Path], object]  # its pixels, RGB, into a file
    shape: tuple[int, ...] | None = None  # that it must have to be drawn; None: any


def worst_section(
    title: str, text: str, worst: Iterable[WorstImage], images: ImageFiles, folder: Path
) -> tuple[list[dict[str, Any]], Section]:
    """Draw the worst images; returns their entries of report.json, and the page's section.

    Those that cannot be read, or are of another size than their labels, have no picture.
    """
    entries, pictures = [], []
    for number, found in enumerate(worst, 1):
        name = _picture_name(number)
        image = None
        if found.path is not None:
            try:
                image = images.read(found.path)
            except ImageError as error:
                warn_once(printable(f"no picture: {error}"))
        if image is None or found.shape not in (None, image.shape[:2]):
            entries.append(found.entry)
            pictures.append(PagePicture(None, found.caption))
            continue
        found.draw(image, folder / name)
        entries.append(found.entry | {"picture": name})
        pictures.append(PagePicture(name, found.caption))
    return entries, Section(title, text, pictures)
