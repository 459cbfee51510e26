"""Results as files, each written whole or not at all."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _finite(content: object) -> object:
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
