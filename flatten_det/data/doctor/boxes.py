"""Boxes, all of a data set at once."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from ..coco_values import is_number
from .kinds import BOX_CROSSES_BORDER, BOX_EMPTY, BOX_INVALID, BOX_NEGATIVE, BOX_OUTSIDE, Kind

# Annotation tools round.
TOLERANCE_PX = 1.0


def box_array(values: list[Any]) -> np.ndarray:
    """Boxes as the annotations have them, as an array.

    Returns:
        float64 ``(N, 4)``; NaN for what is not four finite numbers.
    """
    if all(type(value) is list and len(value) == 4 for value in values):
        numbers = chain.from_iterable(values)
        if set(map(type, chain.from_iterable(values))) <= {int, float}:
            try:
                flat = np.fromiter(numbers, np.float64, 4 * len(values))
            except OverflowError:  # An integer larger than any float.
                pass
            else:
                boxes = flat.reshape(-1, 4)
                boxes[~np.isfinite(boxes).all(axis=1)] = np.nan
                return boxes
    boxes = np.full((len(values), 4), np.nan)
    for row, value in enumerate(values):
        if isinstance(value, list) and len(value) == 4 and all(map(is_number, value)):
            boxes[row] = value
    return boxes


def box_faults(boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[Kind, np.ndarray]]:
    """What is wrong with which boxes; at most one fault each.

    Args:
        boxes: ``(N, 4)`` as x, y, width and height in pixels; NaN where there is none.
        sizes: ``(N, 2)``, width and height of the images; NaN where they are not known.

    Yields:
        A kind and the rows ``(M,)`` that it is true of.
    """
    start, extent = boxes[:, :2], boxes[:, 2:]
    # An infinity may come of adding two finite numbers; NaN, of unknown sizes, compares as False.
    with np.errstate(over="ignore", invalid="ignore"):
        end = start + extent
        tests = (
            (BOX_INVALID, np.isnan(boxes[:, 0])),
            (BOX_NEGATIVE, (extent < 0).any(axis=1)),
            (BOX_EMPTY, (extent < 1).any(axis=1)),
            (BOX_OUTSIDE, (start >= sizes).any(axis=1) | (end <= 0).any(axis=1)),
            (
                BOX_CROSSES_BORDER,
                (start < -TOLERANCE_PX).any(axis=1) | (end > sizes + TOLERANCE_PX).any(axis=1),
            ),
        )
    faultless = np.ones(len(boxes), bool)
    for kind, is_true in tests:
        rows = np.flatnonzero(is_true & faultless)
        faultless[rows] = False
        if len(rows):
            yield kind, rows
