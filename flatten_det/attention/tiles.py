"""Tiles of whole rows of a map, their buffers, and the feature map of their rows."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
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


class Activation(NamedTuple):
    """How a token becomes non-negative: ``(ReLU(x) + eps) * inverse_scale``, or ``max(x, floor)``.

    The second form is the first one with everything but the maximum folded into the projection.

    Attributes:
        inverse_scale: 1 / softplus(s) per channel, or None for 1.
        floor: what remains of a negative entry, per channel: eps * inverse_scale.
        folded: whether inputs have the scale and eps already.
    """

    inverse_scale: Tensor | None
    floor: Tensor
    folded: bool = False

    @classmethod
    def of(
        cls, scale: Tensor | None, eps: float, channels: int, floor: Tensor | None = None
    ) -> "Activation":
        """From the layer's parameter s ``(1, 1, C)``, or from the floor of folded projections."""
        if floor is not None:
            return cls(None, floor.detach().float(), folded=True)
        if scale is None:
            return cls(None, torch.full((channels,), eps))
        inverse_scale = 1 / F.softplus(scale.detach().float().flatten())
        return cls(inverse_scale, eps * inverse_scale)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Into ``out``, which may be ``x``."""
        if self.folded:
            return torch.maximum(x, self.floor, out=out)
        if x.dtype == out.dtype:
            torch.clamp_min(x, 0, out=out)
        else:
            out.copy_(x).clamp_min_(0)
        if self.inverse_scale is None:
            return out.add_(self.floor)
        return torch.addcmul(self.floor, out, self.inverse_scale, out=out)


# Length to which rows are brought before they are cubed. The eps in place of a negative entry would be
# 1e-7 or less in a unit vector, and its sixth power a subnormal number, with which arithmetic is ten times
# slower. Sixth powers reach 2^72 at the most; the gradients have its reciprocals.
LENGTH = 2.0**12


class Focused(NamedTuple):
    """Rows a > 0 of a tile, brought to one length; f_3(a) = ``norm * cube / cube_norm``.

    Attributes:
        scaled: ``LENGTH * a/|a|``, ``(n, C)``.
        cube: its elementwise third power, ``(n, C)``.
        norm: |a|, ``(n, 1)``.
        cube_norm: |cube|, ``(n, 1)``.
    """

    scaled: Tensor
    cube: Tensor
    norm: Tensor
    cube_norm: Tensor

    def values(self) -> Tensor:
        """f_3(a), ``(n, C)``; it overwrites ``cube``."""
        return self.cube.mul_(self.norm / self.cube_norm)


def focus(a: Tensor, buffers: Buffers) -> Focused:
    """Focus positive rows ``a (n, C)``, in place."""
    norm = _row_norm(a)
    scaled = a.mul_(LENGTH / norm)
    cube = torch.pow(scaled, 3, out=buffers("cube", *a.shape))
    return Focused(scaled, cube, norm, _row_norm(cube))


def _row_norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1).unsqueeze(-1)
