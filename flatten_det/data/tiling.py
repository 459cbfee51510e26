"""How a large image is cut into tiles, to learn from or to predict for."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple


class Window(NamedTuple):
    """Columns ``left`` to ``right - 1`` and rows ``top`` to ``bottom - 1`` of an image."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Tiling:
    """How an image is cut: into squares, all of one size, which overlap evenly.

    Attributes:
        size: side of a tile in pixels. Where an image is shorter, its tiles are, too.
        overlap: part of a tile's side that neighbours share at least, 0 to less than 1.

    Raises:
        ValueError: for anything else.
    """

    size: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a tile needs a side of at least 1 pixel, got {self.size}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"tiles overlap by 0 to less than 1 of their side, got {self.overlap}")

    def windows(self, height: int, width: int) -> list[Window]:
        """The tiles of an image, row by row; together they cover it."""
        return [
            Window(left, top, min(left + self.size, width), min(top + self.size, height))
            for top, left in product(self._starts(height), self._starts(width))
        ]

    def _starts(self, length: int) -> list[int]:
        beyond_first = max(length - self.size, 0)
        stride = max(int(self.size * (1 - self.overlap)), 1)
        steps = -(-beyond_first // stride)
        return [beyond_first * step // max(steps, 1) for step in range(steps + 1)]
