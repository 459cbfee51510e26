"""The metafiles: one per family of backbones, in OpenMMLab's format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from .names import FAMILIES

MODEL_INDEX = "model-index.yml"
METAFILES = [f"configs/{folder}/metafile.yml" for folder, _ in FAMILIES.values()]
HEADER = (
    "# Metadata is computed from the configs by tools/update_zoo.py; Collections and Results are kept by "
    "hand.\n"
)


def read_metafile(root: Path, path: str) -> dict[str, Any]:
    """The content of a metafile.

    Raises:
        UserError: it is missing, no YAML, or its ``Collections``, ``Models`` or ``Results`` are
            no lists.
    """
    try:
        content = yaml.safe_load((root / path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing: write its Collections first") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    for key in ("Collections", "Models"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and "Name" in entry for entry in entries
        ):
            raise UserError(f"{path}: {key} is not a list of entries with a Name: write one")
    for entry in content["Models"]:
        if not isinstance(entry.get("Results", []), list):
            raise UserError(f"{path}: {entry['Name']}: Results is not a list: make it one")
    return content


def dump(content: dict[str, Any], header: str = "") -> str:
    """YAML in the order of ``content``."""
    return header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def misfits(path: str, content: dict[str, Any]) -> Iterator[str]:
    """What only a person can put right in the part of a metafile that is kept by hand."""
    collections = {entry["Name"] for entry in content["Collections"]}
    for entry in content["Models"]:
        where = f"{path}: {entry['Name']}"
        if entry["In Collection"] not in collections:
            yield f"{where}: no collection {entry['In Collection']} in this file: add it"
        for result in entry.get("Results", ()):
            missing = {"Task", "Dataset", "Metrics", "Source"} - result.keys()
            if missing:
                yield f"{where}: a result without {', '.join(sorted(missing))}: say it"
