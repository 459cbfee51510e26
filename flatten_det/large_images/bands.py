"""Maps that are computed a band of rows at a time, so that they need never exist as a whole.

A map is made from another one: ``Resized(Cropped(Stored(logits), ...), ...)``. Asked for some rows, it
asks its source for the rows that these depend on, and for no more.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


class BandedMap(ABC):
    """A map of shape ``(channels, height, width)``.

    Attributes:
        channels: of the map.
        height: in rows.
        width: in pixels.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        self.channels = channels
        self.height = height
        self.width = width

    @abstractmethod
    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows ``top`` to ``bottom - 1``: ``(channels, bottom - top, width)``."""

    def bands(self, max_values: int) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, as bands of at most ``max_values`` numbers, or of one row."""
        count = max(max_values // (self.channels * self.width), 1)
        for top in range(0, self.height, count):
            bottom = min(top + count, self.height)
            yield slice(top, bottom), self.rows(top, bottom)


class Stored(BandedMap):
    """A map that is there: a tensor ``(C, H, W)``."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(*values.shape)
        self._values = values

    def rows(self, top: int, bottom: int) -> Tensor:
        return self._values[:, top:bottom]


class Cropped(BandedMap):
    """A map without its margins, in rows and pixels."""

    def __init__(
        self, source: BandedMap, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
    ) -> None:
        super().__init__(source.channels, source.height - top - bottom, source.width - left - right)
        self._source = source
        self._top = top
        self._columns = slice(left, left + self.width)

    def rows(self, top: int, bottom: int) -> Tensor:
        return self._source.rows(self._top + top, self._top + bottom)[..., self._columns]


class Flipped(BandedMap):
    """A mirrored map; ``direction`` is ``"horizontal"`` (left and right swap) or ``"vertical"``."""

    def __init__(self, source: BandedMap, direction: str) -> None:
        super().__init__(source.channels, source.height, source.width)
        self._source = source
        self._vertical = {"horizontal": False, "vertical": True}[direction]

    def rows(self, top: int, bottom: int) -> Tensor:
        if self._vertical:
            return self._source.rows(self.height - bottom, self.height - top).flip(1)
        return self._source.rows(top, bottom).flip(2)


class Resized(BandedMap):
    """What ``F.interpolate(source, (height, width), mode="bilinear")`` gives, up to rounding."""

    def __init__(self, source: BandedMap, height: int, width: int, align_corners: bool) -> None:
        super().__init__(source.channels, height, width)
        self._source = source
        self._align_corners = align_corners
        self._above, self._weights = _row_weights(height, source.height, align_corners)

    def rows(self, top: int, bottom: int) -> Tensor:
        above = self._above[top:bottom]
        below = (above + 1).clamp(max=self._source.height - 1)
        first = int(above[0])
        source = self._source.rows(first, int(below[-1]) + 1)
        if self.width != self._source.width:
            source = F.interpolate(
                source[None],
                (source.shape[1], self.width),
                mode="bilinear",
                align_corners=self._align_corners,
            )[0]
        if self.height == self._source.height:
            return source[:, : bottom - top]
        band = source.new_empty((self.channels, bottom - top, self.width))
        # Row by row: to gather the two neighbours of all rows first takes three times as long.
        rows = zip(
            (above - first).tolist(),
            (below - first).tolist(),
            self._weights[top:bottom].tolist(),
            strict=True,
        )
        for row, (one, other, weight) in enumerate(rows):
            band[:, row] = torch.lerp(source[:, one], source[:, other], weight)
        return band


def _row_weights(height: int, source_height: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """For each row of a resized map: the source row above it, and the weight of the one below that.

    In float32, as torch's kernels compute it: exact numbers would differ from theirs by 1e-4 of a row at a
    height of 4,096, which shows in the result.
    """
    rows = torch.arange(height, dtype=torch.float32)
    if align_corners:
        positions = rows * (torch.tensor(source_height - 1.0) / max(height - 1, 1))
    else:
        scale = torch.tensor(float(source_height)) / height
        positions = ((rows + 0.5) * scale - 0.5).clamp(min=0)
    above = positions.long().clamp(max=source_height - 1)
    return above, positions - above
