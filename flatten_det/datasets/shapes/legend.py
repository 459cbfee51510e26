"""Images whose objects can be told apart only by what stands far from them: a legend along the top edge.

Like the header of a table, each column of the legend shows, as a colour of the palette, the class of all
objects below it. These classes are drawn anew and independently for every image. The background is grey
and every object is a white disc: neither an object nor what surrounds it says its class, only the legend
does, and only the column above the object.

The legend itself is background in the annotations. ``legend_distance`` keeps objects away from it, farther
than convolutions reach, so that a model needs attention to do better than guess.
"""

from typing import NamedTuple

import numpy as np

from .options import LEGEND_HEIGHT, PALETTE

OBJECT_COLOUR = np.float32([250, 250, 250])


class Legend(NamedTuple):
    """The legend of one image.

    Attributes:
        classes: Class index of each column, int64 (columns,).
        edges: Where the columns begin, and where the last one ends, in pixels, int64 (columns + 1,).
    """

    classes: np.ndarray
    edges: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, canvas: np.ndarray, columns: int, num_classes: int
    ) -> "Legend":
        """Choose a legend, make the background grey and draw the legend into its uppermost rows.

        Args:
            rng: Source of the classes.
            canvas: The background, RGB, float32 (H, W, 3); overwritten.
            columns: How many, of equal width up to rounding.
            num_classes: The classes are the first ones of this number.
        """
        legend = cls(
            rng.integers(num_classes, size=columns),
            np.arange(columns + 1) * canvas.shape[1] // columns,
        )
        # Darker than the objects wherever they are.
        canvas[:] = 0.7 * canvas.mean(axis=2, keepdims=True)
        # Spread over the palette, as its neighbours look alike.
        colours = np.float32(PALETTE)[legend.classes * len(PALETTE) // num_classes]
        canvas[:LEGEND_HEIGHT] = np.repeat(colours, np.diff(legend.edges), axis=0)
        return legend

    def choose_column(self, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """Draw a column for an object: its class, and where it begins and ends in pixels."""
        column = int(rng.integers(len(self.classes)))
        return int(self.classes[column]), tuple(self.edges[column : column + 2].tolist())


def guessing_iou(num_classes: int) -> float:
    """The best mean IoU of the objects' classes, from 0 to 1, of who does not see the legend.

    Guessing class c for a share p of all objects makes its IoU p / (1 + p (n - 1)) with n classes, which
    is concave in p: equal shares are best. Objects are taken to be found exactly.
    """
    return 1 / (2 * num_classes - 1)
