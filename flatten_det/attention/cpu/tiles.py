"""Cutting a map into tiles of whole rows, and the buffers that all tiles share."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Tokens of a tile of 64 channels. Measured: 2048 to 16384 differ little for the operators, the layer at
# inference gains 5 % from 8192 and more, as calls and the rows that two tiles need are fewer.
TILE_TOKENS = 8192
_TILE_CHANNELS = 64
_LEAST_TOKENS = 1024


class Tile(NamedTuple):
    """Some rows of one map, or several whole maps.

    Attributes:
        batch: slice of the batch; longer than one only for whole maps.
        rows: slice of the map's rows.
        tokens: slice of its tokens.
    """

    batch: slice
    rows: slice
    tokens: slice

    @property
    def size(self) -> tuple[int, int]:
        """Maps and tokens of each."""
        return self.batch.stop - self.batch.start, self.tokens.stop - self.tokens.start


def tiles(batch: int, hw_shape: tuple[int, int], channels: int) -> Iterator[Tile]:
    """All tiles of a batch of maps, about as large as suits the cache."""
    height, width = hw_shape
    wanted = max(TILE_TOKENS * _TILE_CHANNELS // channels, _LEAST_TOKENS)
    rows = min(max(wanted // width, 1), height)
    maps = max(wanted // (height * width), 1) if rows == height else 1
    for first in range(0, batch, maps):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            yield Tile(
                slice(first, min(first + maps, batch)),
                slice(top, bottom),
                slice(top * width, bottom * width),
            )


class Buffers:
    """Named scratch tensors that grow to the largest size asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised float32 tensor; the same name gives the same memory."""
        size = torch.Size(shape).numel()
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size)
        return kept[:size].view(shape)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(b, n, C)`` -> ``(b*h, n, d)``; a view if there is one map or one head."""
    b, n, channels = x.shape
    heads = x.unflatten(-1, (num_heads, channels // num_heads)).transpose(1, 2)
    return heads.reshape(b * num_heads, n, channels // num_heads)


def merge_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(b*h, n, d)`` -> ``(b, n, h, d)``, a view to copy from."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2)
