"""Whether the model's heads count as many classes as the data set has."""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from ...config import type_name
from .data_sets import PANOPTIC, DataSet
from .findings import Finding, quoted
from .kinds import CLASS_COUNT

_FIELDS = ("num_classes", "num_things_classes", "num_stuff_classes")
# What counts something else: objects or not; classes of stuff; borders or not.
_OTHER_HEADS = ("rpn_head", "semantic_head")
_OTHER_TYPES = ("STDCHead",)


def class_count_findings(cfg: Config, data_set: DataSet) -> Iterator[Finding]:
    """Heads that would be built for another number of classes than the data set's."""
    if not data_set.classes or data_set.open_vocabulary or not cfg.get("model"):
        return
    for place, field, count in _counts(cfg.model.to_dict(), "model", in_head=False):
        expected = _expected(data_set, field)
        if isinstance(count, int) and count not in expected:
            names = ", ".join(map(quoted, data_set.classes[:3]))
            names += ", ..." if len(data_set.classes) > 3 else ""
            yield data_set.finding(
                CLASS_COUNT,
                f"{place}.{field} is {count}, the data set has {expected[0]} ({names})",
                f"{place}.{field}",
                str(cfg.filename),
            )


def _counts(node: Any, place: str, in_head: bool) -> Iterator[tuple[str, str, Any]]:
    if isinstance(node, dict):
        if type_name(node) in _OTHER_TYPES:
            return
        for key, value in node.items():
            if key in _FIELDS and in_head:
                yield place, key, value
            elif key not in _OTHER_HEADS:
                yield from _counts(value, f"{place}.{key}", in_head or str(key).endswith("_head"))
    elif isinstance(node, list | tuple):
        for number, item in enumerate(node):
            yield from _counts(item, f"{place}[{number}]", in_head)


def _expected(data_set: DataSet, field: str) -> tuple[int, ...]:
    """The counts that a field may have, the usual one first."""
    every, things = len(data_set.classes), data_set.things
    if data_set.task is not PANOPTIC:
        return (0,) if field == "num_stuff_classes" else (every,)
    if field == "num_things_classes":
        return (things,)
    if field == "num_stuff_classes":
        return (every - things,)
    return every, things  # Of a segmentor's head, and of a detector's within it.
