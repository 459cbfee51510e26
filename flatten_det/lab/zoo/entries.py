"""One config's entry in a metafile."""

from collections.abc import Iterator
from typing import Any

from ...errors import UserError
from ..complexity import SAMPLING, build_without_values, count_model
from ..training_size import training_size
from .configs import ZooConfig
from .names import collection_of

COUNTS = ("Parameters", "FLOPs")
FLOPS_STEP = 10_000_000  # The zoo page shows hundredths of G.


def make_entry(config: ZooConfig, old: dict[str, Any], count: bool) -> dict[str, Any]:
    """The entry of a config: what is computed, then what ``old`` has besides.

    Args:
        config: the config.
        old: its entry so far; empty: none.
        count: count parameters and FLOPs. False: only if ``old`` does not have them for this input size.

    Raises:
        UserError: something in the model cannot be counted.
    """
    metadata = config.metadata()
    before = old.get("Metadata", {})
    known = before.get("Input Size") == metadata["Input Size"] and before.keys() >= set(COUNTS)
    if count or not known:
        complexity = count_model(build_without_values(config.cfg), training_size(config.cfg))
        unknown = complexity.uncounted.keys() - SAMPLING
        if unknown:
            raise UserError(
                f"{config.path}: no FLOP formula for {', '.join(sorted(unknown))}: add it to "
                "flatten_det/complexity/formulas.py"
            )
        counts = (complexity.parameters, round(complexity.macs / FLOPS_STEP) * FLOPS_STEP)
    else:
        counts = tuple(before[name] for name in COUNTS)
    metadata |= zip(COUNTS, counts, strict=True)
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
