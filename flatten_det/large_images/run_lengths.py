"""Masks of parts of an image as COCO's run lengths (RLE) of the whole image."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def encode_in_image(
    mask: np.ndarray, left: int, top: int, height: int, width: int
) -> dict[str, Any]:
    """Encode a mask that lies somewhere in an image, without an array of the image's size.

    Args:
        mask: bool, (h, w).
        left: the image's column of the mask's first one.
        top: the image's row of the mask's first one.
        height: of the image.
        width: of the image.

    Returns:
        ``size`` and compressed ``counts``, as ``pycocotools.mask.encode`` gives for the whole image.
    """
    columns = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))
    changes = np.diff(columns, axis=1)  # [w, h + 1]: 1 where a run starts, -1 after its end
    starts, ends = (
        (left + column) * height + top + row
        for column, row in map(np.nonzero, (changes > 0, changes < 0))
    )
    # A run that reaches the image's last row goes on in the first one of the next column.
    goes_on = starts[1:] == ends[:-1]
    starts = np.delete(starts, 1 + np.flatnonzero(goes_on))
    ends = np.delete(ends, np.flatnonzero(goes_on))
    borders = np.stack([starts, ends], axis=1).ravel()
    counts = np.diff(borders, prepend=0, append=height * width)
    if len(counts) > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = {"size": [height, width], "counts": counts.tolist()}
    return coco_mask.frPyObjects(rle, height, width)
