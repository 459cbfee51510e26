"""What all reports have in common: options, the parts of a page, and how numbers are written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.loading import ImageError
from ...errors import UserError, printable, warn_once
from ...files.atomic import refuse_overwriting
from ...results.prediction import SCORE_THRESHOLD
from .collect import ImageFiles
from .detections import KEYS
from .figures import LARGEST_MATRIX, PAIRS, confused_pairs
from .page import Rows, Section

JSON, PAGE, WORST = "report.json", "index.html", "worst"
_FIGURES = ("classes", "curves", "confusion", "kinds")


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
            pictures = [picture_name(number) for number in range(1, self.worst + 1)]
            outputs = [self.out_dir / name for name in (JSON, PAGE, *figures, *pictures)]
            refuse_overwriting(filter(None, [*inputs, *images.files]), outputs, "--out-dir")

        return refuse


def picture_name(number: int) -> str:
    """The file of a worst image's picture, below the page's folder."""
    return f"{WORST}/{number:02d}.png"


@dataclass(frozen=True)
class Report:
    """What was found."""

    content: dict[str, Any]  # of report.json
    sections: list[Section]  # of the page
    tables: list[Rows]  # of the console
    unreadable: UserError | None = None  # names the images that were left out


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
    pairs = confused_pairs(confusion, len(names))
    rows = [
        [f"{names[row]} → {names[column]}", f"{count:,}", f"{share:.1%}"]
        for row, column, count, share in pairs[:PAIRS]
    ]
    return Rows(
        "Most confused classes, truth → prediction", ("pair", what, "of the true class"), rows
    )


def read_or_warn(images: ImageFiles, path: str | None) -> np.ndarray | None:
    """The pixels of an image, RGB; None, and a warning, if it cannot be read or there is none."""
    if path is None:
        return None
    try:
        return images.read(path)
    except ImageError as error:
        warn_once(printable(f"no picture: {error}"))
        return None
