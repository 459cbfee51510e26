"""COCO's compressed run lengths of masks, in numpy: what pycocotools writes and reads."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np


class Rle(TypedDict):
    """A mask: ``size`` is [height, width], ``counts`` COCO's text of its run lengths, column by column."""

    size: list[int]
    counts: str


def encode(mask: np.ndarray) -> Rle:
    """Encode a mask (H, W), whatever is not 0 in it."""
    columns = np.asarray(mask, bool).T.ravel()
    return _from_borders(np.flatnonzero(np.diff(columns, prepend=False)), mask.shape)


def encode_labels(label_map: np.ndarray) -> dict[int, Rle]:
    """Encode a map (H, W) of labels, or of segments: by label the mask of its pixels, in one pass."""
    columns = label_map.T.ravel()
    starts = np.flatnonzero(np.r_[True, columns[1:] != columns[:-1]])
    spans = np.stack([starts, np.append(starts[1:], columns.size)], 1)
    values = columns[starts]
    return {
        label: _from_borders(spans[values == label].ravel(), label_map.shape)
        for label in np.unique(values).tolist()
    }


def _from_borders(borders: np.ndarray, size: Sequence[int]) -> Rle:
    """Of the places, column by column, from which on a mask is the other one of background and object."""
    # Runs of background and of mask take turns, background first, and may be empty.
    runs = np.diff(borders, prepend=0, append=size[0] * size[1])
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    return {"size": list(size), "counts": _as_text(runs)}


def decode(rle: Mapping) -> np.ndarray:
    """The mask (H, W) of bool.

    Raises:
        ValueError: the run lengths are none, or do not fill the size.
    """
    height, width = rle["size"]
    runs = run_lengths(rle)
    of_mask = np.arange(len(runs)) % 2 == 1
    return np.repeat(of_mask, runs).reshape(width, height).T


def run_lengths(rle: Mapping) -> list[int]:
    """Of background and mask in turns; a ValueError as of :func:`decode`, where pycocotools sees no fault."""
    height, width = rle["size"]
    runs = _from_text(rle["counts"])
    if min(runs, default=0) < 0 or sum(runs) != height * width:
        raise ValueError(f"run lengths of a mask do not fill its {height} x {width} pixels")
    return runs


def _as_text(runs: np.ndarray) -> str:
    """Numbers of 5 bits a character; from the fourth run on, differences from the last run but one."""
    numbers = runs.copy()
    numbers[3:] -= runs[1:-2]
    text = bytearray()
    for number in numbers.tolist():
        is_last = False
        while not is_last:
            low, number = number & 31, number >> 5
            is_last = number == (-1 if low & 16 else 0)
            text.append(48 + low + (0 if is_last else 32))
    return text.decode()


def _from_text(counts: str | bytes) -> list[int]:
    runs: list[int] = []
    number = shift = 0
    for code in counts if isinstance(counts, bytes) else counts.encode():
        code -= 48
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:  # Negative.
                number -= 1 << shift
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return runs
