"""Images whose objects can be told apart only by what stands far from them: a legend along the top edge.

Like that of a map, each cell of the legend has a hue, and says by its brightness the class of all objects
of this hue. Cells, their hues, places and classes are drawn anew and independently for every image. The
background is grey and every object is a disc of one brightness: neither an object nor what surrounds it
says its class, only the legend does, and only the one cell of the same hue. The more cells there are, the
closer their hues, and the sharper must be who looks.

The legend itself is background in the annotations. ``legend_distance`` keeps objects away from it, farther
than convolutions reach, so that a model needs attention to do better than guess.
"""

from typing import NamedTuple

import numpy as np

from .options import LEGEND_HEIGHT

OBJECT_LUMA = 130.0
_LUMA_RANGE = (90.0, 170.0)  # of the legend, from the first class to the last
_CHROMA = 80.0
# Orthogonal to grey and to each other, in RGB.
_CHROMA_AXES = np.array([[2, -1, -1], [0, 3**0.5, -(3**0.5)]]) / 6**0.5


class Legend(NamedTuple):
    """The legend of one image.

    Attributes:
        classes: Class index of each cell, int64 (cells,).
        hues: Angle of each cell's colour in radians, float64 (cells,).
    """

    classes: np.ndarray
    hues: np.ndarray

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        canvas: np.ndarray,
        cells: tuple[int, int],
        num_classes: int,
    ) -> "Legend":
        """Choose a legend, make the background grey and draw the legend into its uppermost rows.

        Args:
            rng: Source of cells, hues and classes.
            canvas: The background, RGB, float32 (H, W, 3); overwritten.
            cells: The smallest and the largest number of them; all have one width up to rounding.
            num_classes: The classes are the first ones of this number.
        """
        count = int(rng.integers(*cells, endpoint=True))
        hues = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count
        legend = cls(rng.integers(num_classes, size=count), rng.permutation(hues))
        canvas[:] = 0.7 * canvas.mean(axis=2, keepdims=True)
        lumas = np.linspace(*_LUMA_RANGE, num_classes)[legend.classes]
        edges = np.arange(count + 1) * canvas.shape[1] // count
        canvas[:LEGEND_HEIGHT] = np.repeat(_colours(legend.hues, lumas), np.diff(edges), axis=0)
        return legend

    def choose_cell(self, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """Draw a cell for an object: the class and the colour, RGB, of the object."""
        cell = int(rng.integers(len(self.classes)))
        return int(self.classes[cell]), _colours(self.hues[cell], OBJECT_LUMA)


def guessing_iou(num_classes: int) -> float:
    """The best mean IoU of the objects' classes, from 0 to 1, of who does not see the legend.

    Guessing class c for a share p of all objects makes its IoU p / (1 + p (n - 1)) with n classes, which
    is concave in p: equal shares are best. Objects are taken to be found exactly.
    """
    return 1 / (2 * num_classes - 1)


def _colours(hues: np.ndarray, lumas: np.ndarray | float) -> np.ndarray:
    """RGB ``(..., 3)``, float32, of hues ``(...)``."""
    chroma = np.stack([np.cos(hues), np.sin(hues)], axis=-1) @ _CHROMA_AXES
    return np.float32(np.expand_dims(lumas, -1) + _CHROMA * chroma)
