"""Images whose objects can be told apart only by what stands far from them: a legend along the top edge.

As on a map, each cell of the legend shows what a colour stands for in this one image: the first cell
the colour of the first class, the second that of the second, and so on. Every object is a disc in the
colour of its class. Which colours an image uses, and for which class, is drawn anew for every image, and
the background is grey: neither an object nor what surrounds it says its class, only the legend does.

Cells are background in the annotations. ``legend_distance`` keeps every object away from them, farther
than convolutions reach, so that a model needs attention to do better than guess.
"""

import numpy as np

from .options import LEGEND_HEIGHT, PALETTE


def draw_legend(rng: np.random.Generator, canvas: np.ndarray, num_classes: int) -> np.ndarray:
    """Make the background grey and draw the legend into its uppermost rows.

    Args:
        rng: Source of the colours.
        canvas: The background, RGB, float32 (H, W, 3); overwritten.
        num_classes: How many cells, of equal width, from left to right.

    Returns:
        The RGB colour of each class, float32 (num_classes, 3).
    """
    canvas[:] = canvas.mean(axis=2, keepdims=True)
    colours = np.array(PALETTE, np.float32)[rng.permutation(len(PALETTE))[:num_classes]]
    cell_of_column = np.arange(canvas.shape[1]) * num_classes // canvas.shape[1]
    canvas[:LEGEND_HEIGHT] = colours[cell_of_column]
    return colours


def guessing_iou(num_classes: int) -> float:
    """The best mean IoU of the objects' classes, from 0 to 1, without looking at the legend.

    Colours say nothing about classes then. Guessing class c for a share p of all objects makes its IoU
    p / (1 + p (n - 1)) with n classes, which is concave in p: equal shares are best. Objects are taken
    to be found exactly.
    """
    return 1 / (2 * num_classes - 1)
