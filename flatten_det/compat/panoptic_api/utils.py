"""Segment ids as colours, as the PNG files of COCO's panoptic format have them."""

from collections.abc import Sequence

import numpy as np

_BASE = 256


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """Ids of colours, ``R + 256 G + 256² B``.

    Args:
        color: an image ``(H, W, 3)`` in RGB, or one colour.

    Returns:
        int32 ids ``(H, W)``, or one id.
    """
    if isinstance(color, np.ndarray) and color.ndim == 3:
        red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
        return red + _BASE * (green + _BASE * blue)
    red, green, blue = map(int, color)
    return red + _BASE * (green + _BASE * blue)


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """Colours of ids, the inverse of :func:`rgb2id`.

    Args:
        id_map: ids ``(...)`` from 0 to 256³ - 1, or one id.

    Returns:
        uint8 RGB ``(..., 3)``, or one colour.
    """
    if isinstance(id_map, np.ndarray):
        ids = id_map.astype(np.int64)
        channels = [ids // _BASE**power % _BASE for power in range(3)]
        return np.stack(channels, axis=-1).astype(np.uint8)
    return [int(id_map) // _BASE**power % _BASE for power in range(3)]
