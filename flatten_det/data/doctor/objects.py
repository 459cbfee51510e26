"""What holds for instances and panoptic segments alike: their fields, images, categories and boxes."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..coco_values import is_id, is_number, is_size
from .boxes import box_array, box_faults
from .data_sets import DataSet
from .findings import Finding, counted, quoted
from .json_file import CocoContent
from .kinds import MALFORMED_ENTRY, UNKNOWN_CATEGORY, UNKNOWN_IMAGE, Kind


@dataclass
class Objects:
    """Objects of a data set, whose fields may still be anything.

    Attributes:
        noun: what one is called: ``'annotation'`` or ``'segment'``.
        entries: one dict per object.
        image_ids: of their images, one per object; None where it is no id.
    """

    noun: str
    entries: list[dict[str, Any]]
    image_ids: list[Any]

    def finding(self, data_set: DataSet, kind: Kind, row: int, what: str) -> Finding:
        """A fault of one object."""
        id_ = self.entries[row].get("id")
        of_image = quoted(self.image_ids[row])
        message = f"{self.noun} {quoted(id_)} of image {of_image} {what}"
        return data_set.finding(kind, message, id_ if is_id(id_) else None)

    def category_ids(self) -> list[Any]:
        """Ids of their categories, one per object; None where it is no id."""
        return id_column(self.entries, "category_id")


def id_column(entries: list[dict[str, Any]], key: str) -> list[Any]:
    """What each entry has under ``key``; None where it is no id."""
    values = [entry.get(key) for entry in entries]
    if set(map(type, values)) <= {int, str}:
        return values
    return [value if is_id(value) else None for value in values]


def why_none_counts(objects: Objects, reason: Callable[[dict[str, Any]], str | None]) -> str | None:
    """Say why no object counts; None if one does, which mostly is found at once.

    Args:
        objects: of a data set.
        reason: says of one why it does not count.
    """
    reasons: Counter[str] = Counter()
    for entry, image_id in zip(objects.entries, objects.image_ids, strict=True):
        why = reason({**entry, "image_id": image_id})
        if why is None:
            return None
        reasons[why] += 1
    if not reasons:
        return f"there is no {objects.noun} in the file"
    number = counted(len(objects.entries), objects.noun)
    if len(reasons) == 1:
        return f"all {number} {reasons.popitem()[0]}"
    return f"of {number}, {', '.join(f'{count} {why}' for why, count in reasons.most_common())}"


def object_findings(
    data_set: DataSet, content: CocoContent, objects: Objects, needed: tuple[str, ...]
) -> Iterator[Finding]:
    """What is wrong with single objects.

    Args:
        data_set: where they belong.
        content: the file's images and categories.
        objects: what is looked at.
        needed: fields, beside ids and boxes, without which the frameworks fail.
    """
    entries = objects.entries
    ids = id_column(entries, "id")
    for row in (row for row, id_ in enumerate(ids) if id_ is None):
        what = "has no id that is a whole number or a text"
        yield objects.finding(data_set, MALFORMED_ENTRY, row, what)
    for key in needed:
        values = [entry.get(key) for entry in entries]
        if not set(map(type, values)) <= {int}:
            for row in (row for row, value in enumerate(values) if not is_number(value)):
                yield objects.finding(data_set, MALFORMED_ENTRY, row, f"has no number as {key}")
    yield from _unknown_categories(data_set, content, objects)
    row_of_image = {image["id"]: row for row, image in enumerate(content.images)}
    image_rows = np.array([row_of_image.get(id_, -1) for id_ in objects.image_ids], np.int64)
    for row in np.flatnonzero(image_rows < 0).tolist():
        yield objects.finding(data_set, UNKNOWN_IMAGE, row, "has an image that is not listed")
    yield from _box_findings(data_set, content, objects, image_rows)


def _unknown_categories(
    data_set: DataSet, content: CocoContent, objects: Objects
) -> Iterator[Finding]:
    known = {category["id"] for category in content.categories}
    ids = objects.category_ids()
    if set(ids) <= known:
        return
    for row in (row for row, id_ in enumerate(ids) if id_ not in known):
        stored = quoted(objects.entries[row].get("category_id"))
        yield objects.finding(
            data_set, UNKNOWN_CATEGORY, row, f"has category {stored}, which is not listed"
        )


def _box_findings(
    data_set: DataSet, content: CocoContent, objects: Objects, image_rows: np.ndarray
) -> Iterator[Finding]:
    # The last row is that of unknown images.
    sizes = np.full((len(content.images) + 1, 2), np.nan)
    for row, image in enumerate(content.images):
        size = image.get("width"), image.get("height")
        if all(map(is_size, size)) and max(size) < 2**31:
            sizes[row] = size
    sizes = sizes[image_rows]
    stored = [entry.get("bbox") for entry in objects.entries]
    for kind, rows in box_faults(box_array(stored), sizes):
        for row in rows.tolist():
            size = "x".join(f"{side:.0f}" for side in sizes[row] if side == side)
            image = f", image {size}" if size else ""
            yield objects.finding(data_set, kind, row, f"has the box {quoted(stored[row])}{image}")
