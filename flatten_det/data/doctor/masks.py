"""Instance masks as COCO has them: polygons, and run lengths as numbers or as text.

They are not drawn: pycocotools' C code believes what it is given.
"""

from typing import Any

import numpy as np

from ..coco_values import is_number, is_size
from .boxes import TOLERANCE_PX
from .findings import quoted
from .images import by
from .kinds import (
    MASK_BROKEN,
    MASK_CROSSES_BORDER,
    MASK_EMPTY,
    MASK_OUTSIDE,
    MASK_SIZE,
    Kind,
)

# Text of run lengths: 5 bits a character from "0" on, the sixth says that more follow.
_FIRST, _LAST, _VALUE, _SIGN, _MORE, _BITS = 48, 48 + 63, 0x1F, 0x10, 0x20, 5
_MAX_BITS = 40  # Beyond any picture.


class BrokenMask(Exception):
    """A mask that cannot be decoded; the message says why."""


def mask_fault(segmentation: Any, image: dict) -> tuple[Kind, str] | None:
    """What is wrong with a mask: a kind, and words that complete "it ..."; None if nothing is.

    Args:
        segmentation: as an annotation has it, and not empty.
        image: its image's entry in the file.
    """
    size = image.get("width"), image.get("height")
    size = size if all(map(is_size, size)) else None
    try:
        if isinstance(segmentation, list):
            return _polygon_fault(_polygons(segmentation), size)
        if isinstance(segmentation, dict):
            return _run_length_fault(segmentation, size)
    except BrokenMask as error:
        return MASK_BROKEN, f"has a mask that cannot be decoded: {error}"
    kind = type(segmentation).__name__
    return MASK_BROKEN, f"has a segmentation that is neither polygons nor run lengths ({kind})"


def _polygons(segmentation: list) -> list[np.ndarray]:
    """The corners ``(N, 2)`` of each polygon."""
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or not all(map(is_number, polygon)):
            raise BrokenMask("a polygon is no list of finite numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise BrokenMask(f"a polygon has {len(polygon)} numbers, not two for each of 3 corners")
        polygons.append(np.asarray(polygon, np.float64).reshape(-1, 2))
    return polygons


def _polygon_fault(
    polygons: list[np.ndarray], size: tuple[int, int] | None
) -> tuple[Kind, str] | None:
    low = np.min([polygon.min(axis=0) for polygon in polygons], axis=0)
    high = np.max([polygon.max(axis=0) for polygon in polygons], axis=0)
    if size is not None:
        reach = f"x {low[0]:g} to {high[0]:g}, y {low[1]:g} to {high[1]:g}, image {by(size)}"
        if (low >= size).any() or (high <= 0).any():
            return MASK_OUTSIDE, f"has a polygon outside: {reach}"
        if (low < -TOLERANCE_PX).any() or (high > np.add(size, TOLERANCE_PX)).any():
            return MASK_CROSSES_BORDER, f"has a polygon over the border: {reach}"
    if not any(_area(polygon) for polygon in polygons):
        return MASK_EMPTY, "has polygons without area"
    return None


def _area(polygon: np.ndarray) -> float:
    x, y = (polygon - polygon[0]).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _run_length_fault(mask: dict, size: tuple[int, int] | None) -> tuple[Kind, str] | None:
    stated = mask.get("size")
    if not (isinstance(stated, list) and len(stated) == 2 and all(map(is_size, stated))):
        raise BrokenMask(f"its size is {quoted(stated)}, not [height, width]")
    height, width = stated
    if size is not None and (width, height) != size:
        return MASK_SIZE, f"has a mask of {by((width, height))}, its image is {by(size)}"
    runs = _runs(mask.get("counts"))
    if sum(runs) != height * width:
        raise BrokenMask(f"its runs cover {sum(runs)} pixels instead of {height * width}")
    if not sum(runs[1::2]):
        return MASK_EMPTY, "has a mask without a pixel"
    return None


def _runs(counts: Any) -> list[int]:
    """Numbers of pixels, outside and inside by turns."""
    if isinstance(counts, str):
        counts = _decoded(counts)
    elif not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise BrokenMask("its counts are neither text nor whole numbers")
    if any(count < 0 for count in counts):
        raise BrokenMask("it has a run of negative length")
    return counts


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
