"""Results as files, each written whole or not at all."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...files.atomic import write_atomically


def write_json(content: object, path: Path) -> None:
    """Write indented JSON. Infinite and undefined numbers become null, which JSON has no other word for."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    write_text(text + "\n", path)


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Write rows that all have the same keys, with a header; None is an empty field."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file.getvalue(), path)


def write_text(text: str, path: Path) -> None:
    """Write UTF-8; the folder is made if need be."""
    write_atomically(path, text.encode())


def write_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a picture of the kind that the suffix says, PNG or whatever matplotlib knows."""
    content = io.BytesIO()
    figure.savefig(content, dpi=dpi, format=path.suffix[1:])
    write_atomically(path, content.getvalue())


def _finite(content: object) -> object:
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
