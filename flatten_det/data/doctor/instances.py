"""COCO files of instances: their annotations, and one image with its masks at a time.

Masks are polygons, and run lengths as numbers or as text. They are not drawn: pycocotools' C code believes
what it is given.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..coco import CROWDS, can_be_matched, is_id, is_number, is_size, repeated, why_not_learned
from . import faults
from .annotations import TOLERANCE_PX, CocoCheck, id_column
from .faults import FaultKind, Finding, quoted
from .images import by

# Text of run lengths: 5 bits a character from "0" on, the sixth says that more follow.
_FIRST, _LAST, _VALUE, _SIGN, _MORE, _BITS = 48, 48 + 63, 0x1F, 0x10, 0x20, 5
_MAX_BITS = 40  # Beyond any picture.


class InstanceCheck(CocoCheck):
    """Annotations are the objects of a file of instances."""

    noun = "annotation"

    def find_objects(self) -> tuple[list[dict[str, Any]], list[Any]]:
        """The annotations, and the ids of their images."""
        annotations = self.content["annotations"]
        return annotations, id_column(annotations, "image_id")

    def needed_fields(self) -> tuple[str, ...]:
        """What MMDetection reads, and pycocotools in an evaluation."""
        return ("area", "iscrowd") if self.data_set.evaluated else ("area",)

    def own_findings(self) -> Iterator[Finding]:
        """Ids that occur twice or that an evaluation cannot take, and masks that are missing."""
        ids = id_column(self.objects, "id")
        for id_, count in repeated(ids).items():
            if id_ is not None:
                what = f"annotation id {quoted(id_)} occurs {count} times"
                yield self.data_set.finding(faults.DUPLICATE_ANNOTATION_ID, what, id_)
        if self.data_set.evaluated:
            for noun, key in (("image", "images"), ("category", "categories")):
                found = {type(entry["id"]): entry["id"] for entry in self.content[key][::-1]}
                if len(found) > 1:
                    what = f"such as {quoted(found[int])} and {quoted(found[str])!r}"
                    what = f"{noun} ids are numbers and texts, {what}"
                    yield self.data_set.finding(faults.MISREAD_ID, what)
            for row, id_ in enumerate(ids):
                if id_ is not None and not can_be_matched(id_):
                    what = "has an id that is no number, or 0, which means no match to pycocotools"
                    yield self.object_finding(faults.MISREAD_ID, row, what)
        if self.data_set.learns_masks:
            for row, entry in enumerate(self.objects):
                if not entry.get("segmentation"):
                    yield self.object_finding(faults.MASK_MISSING, row, "has no segmentation")

    def why_not(self, entry: dict[str, Any], to_learn: bool) -> str | None:
        """Crowds, what has no area, and what is not of the listed images and the config's classes."""
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        image = self.images.get(image_id) if is_id(image_id) else None
        if image is None:
            return "are of images that are not listed"
        if not (is_id(category_id) and category_id in self.classes):
            return "are of no class of the config"
        if not to_learn:
            return CROWDS if entry.get("iscrowd") else None
        size = image.get("width"), image.get("height")
        if all(map(is_size, size)):
            return why_not_learned(entry, size, self.data_set.min_size)
        # That the size is wrong is said of the image.
        return why_not_learned({**entry, "bbox": [0, 0, 1, 1], "area": 1})

    def other_findings(self, image: dict) -> Iterator[Finding]:
        """What is wrong with the masks of its objects."""
        for row in self.rows.get(image["id"], ()):
            segmentation = self.objects[row].get("segmentation")
            fault = mask_fault(segmentation, image) if segmentation else None
            if fault is not None:
                kind, what = fault
                yield self.object_finding(kind, row, what)


class BrokenMask(Exception):
    """A mask that cannot be decoded; the message says why."""


def mask_fault(segmentation: Any, image: dict) -> tuple[FaultKind, str] | None:
    """What is wrong with a mask of an image: a kind, and words that complete "it ..."; None if nothing is."""
    size = image.get("width"), image.get("height")
    size = size if all(map(is_size, size)) else None
    try:
        if isinstance(segmentation, list):
            return _polygon_fault(segmentation, size)
        if isinstance(segmentation, dict):
            return _run_length_fault(segmentation, size)
    except BrokenMask as error:
        return faults.MASK_BROKEN, f"has a mask that cannot be decoded: {error}"
    what = f"has a segmentation that is neither polygons nor run lengths ({type(segmentation).__name__})"
    return faults.MASK_BROKEN, what


def _polygon_fault(
    segmentation: list, size: tuple[int, int] | None
) -> tuple[FaultKind, str] | None:
    polygons = []  # Corners (N, 2) of each.
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(map(is_number, polygon)):
            raise BrokenMask("a polygon is no list of finite numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise BrokenMask(f"a polygon has {len(polygon)} numbers, not two for each of 3 corners")
        polygons.append(np.asarray(polygon, np.float64).reshape(-1, 2))
    corners = np.concatenate(polygons)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if size is not None:
        reach = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}, image {by(size)}"
        if (low >= size).any() or (high <= 0).any():
            return faults.MASK_OUTSIDE, f"has a polygon outside: {reach}"
        if (low < -TOLERANCE_PX).any() or (high > np.add(size, TOLERANCE_PX)).any():
            return faults.MASK_CROSSES_BORDER, f"has a polygon over the border: {reach}"
    if not any(_area(polygon) for polygon in polygons):
        return faults.MASK_EMPTY, "has polygons without area"
    return None


def _area(polygon: np.ndarray) -> float:
    x, y = (polygon - polygon[0]).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _run_length_fault(mask: dict, size: tuple[int, int] | None) -> tuple[FaultKind, str] | None:
    stated = mask.get("size")
    if not (isinstance(stated, list) and len(stated) == 2 and all(map(is_size, stated))):
        raise BrokenMask(f"its size is {quoted(stated)}, not [height, width]")
    height, width = stated
    if size is not None and (width, height) != size:
        return faults.MASK_SIZE, f"has a mask of {by((width, height))}, its image is {by(size)}"
    runs = mask.get("counts")  # Numbers of pixels, outside and inside by turns.
    if isinstance(runs, str):
        runs = _decoded(runs)
    elif not isinstance(runs, list) or not all(type(count) is int for count in runs):
        raise BrokenMask("its counts are neither text nor whole numbers")
    if any(count < 0 for count in runs):
        raise BrokenMask("it has a run of negative length")
    if sum(runs) != height * width:
        raise BrokenMask(f"its runs cover {sum(runs)} pixels instead of {height * width}")
    return None if sum(runs[1::2]) else (faults.MASK_EMPTY, "has a mask without a pixel")


def _decoded(text: str) -> list[int]:
    """Run lengths written as text; from the third on, as the difference to the one before last."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character)
        if not _FIRST <= code <= _LAST or shift > _MAX_BITS:
            raise BrokenMask("its counts are no text of run lengths")
        code -= _FIRST
        value |= (code & _VALUE) << shift
        shift += _BITS
        if code & _MORE:
            continue
        if code & _SIGN:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise BrokenMask("its counts end in the middle of a number")
    return runs
