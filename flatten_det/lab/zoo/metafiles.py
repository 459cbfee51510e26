"""The metafiles: one per family of backbones, in OpenMMLab's format."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ..complexity import SAMPLING, build_without_values, count_model
from ..complexity.target import training_size
from .configs import FAMILIES, ZooConfig, collection_of

MODEL_INDEX = "model-index.yml"
METAFILES = [f"configs/{folder}/metafile.yml" for folder, _ in FAMILIES.values()]
HEADER = (
    "# Metadata is computed from the configs by tools/update_zoo.py; Collections and Results are kept by "
    "hand.\n"
)
_COUNTS = ("Parameters", "FLOPs")
_FLOPS_STEP = 10_000_000  # The zoo page shows hundredths of G.


def read_metafile(root: Path, path: str) -> dict[str, Any]:
    """The content of a metafile; UserError if it is missing, no YAML, or has no lists where it needs them."""
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


def make_entry(config: ZooConfig, old: dict[str, Any], count: bool) -> dict[str, Any]:
    """The entry of a config: what is computed, then what its entry so far, ``old``, has besides.

    ``count`` counts parameters and FLOPs, else only if ``old`` does not have them for this input size.
    UserError if something in the model cannot be counted.
    """
    metadata = config.metadata()
    before = old.get("Metadata", {})
    known = before.get("Input Size") == metadata["Input Size"] and before.keys() >= set(_COUNTS)
    if count or not known:
        complexity = count_model(build_without_values(config.cfg), training_size(config.cfg))
        if unknown := complexity.uncounted.keys() - SAMPLING:
            raise UserError(
                f"{config.path}: no FLOP formula for {', '.join(sorted(unknown))}: add it to "
                "flatten_det/lab/complexity/counter.py"
            )
        counts = (complexity.parameters, round(complexity.macs / _FLOPS_STEP) * _FLOPS_STEP)
    else:
        counts = tuple(before[name] for name in _COUNTS)
    metadata |= zip(_COUNTS, counts, strict=True)
    # A copy of what the results say: the model-index library drops their fields that it does not know.
    sources = dict.fromkeys(result.get("Source") for result in old.get("Results", ()))
    if sources:
        metadata["Results Source"] = "; ".join(filter(None, sources))
    computed = {
        "Name": config.name,
        "In Collection": collection_of(config.backbone),
        "Config": config.path,
        "Metadata": metadata,
    }
    return computed | {key: value for key, value in old.items() if key not in computed}


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """One line for each field in which two entries of a config differ."""
    before, after = (
        {key: value for key, value in entry.items() if key != "Metadata"} | entry["Metadata"]
        for entry in ({"Metadata": {}} | old, new)
    )
    for key in dict.fromkeys([*after, *before]):
        if key not in after:
            yield f"{key} should not be there"
        elif key not in before:
            yield f"{key} is missing, should be {after[key]}"
        elif before[key] != after[key]:
            yield f"{key} is {before[key]}, should be {after[key]}"
