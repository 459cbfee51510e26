"""Draw one image of the Shapes data set together with its instance masks."""

from typing import NamedTuple

import cv2
import numpy as np

from .legend import Legend
from .options import CLASSES, SPLITS, ShapesOptions
from .outlines import random_outline
from .textures import blend, random_field

_SUPERSAMPLING = 4
_FRACTION_BITS = 4
_PLACEMENT_TRIES = 12
_COLOUR_TRIES = 12
# CIE76 colour difference to the surroundings. About 2 is just noticeable; the texture of an
# object and the grain of the image take up to some 20 away again.
_MIN_CONTRAST = 35
_CIRCLE = CLASSES.index("circle")
_MARGIN = 3  # Width in pixels of the surroundings that an object is told apart from.


class ShapesImage(NamedTuple):
    """One rendered image.

    Attributes:
        image: RGB, uint8, shape (H, W, 3).
        labels: Class index of every object, int64, shape (N,).
        owner: Which object is seen at a pixel: its index, or -1 for the background. int16,
            shape (H, W). ``owner == i`` is the visible mask of object ``i``; an image pixel
            belongs to the object that covers at least half of it.
    """

    image: np.ndarray
    labels: np.ndarray
    owner: np.ndarray


def render(options: ShapesOptions, split: str, index: int) -> ShapesImage:
    """Draw image ``index`` of ``split``; it depends on nothing but the arguments.

    Class, size, place, angle, colour and texture of an object are drawn independently; only the
    colour is chosen to stand out from what surrounds the object. With a legend the class follows
    from the colour, and all objects are discs; see :mod:`~flatten_det.data.shapes.legend`.
    """
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    image_size = _image_size(rng, options)
    canvas = _background(rng, *image_size, options.texture_contrast)
    legend = None
    if options.legend:
        legend = Legend.draw(rng, canvas, options.legend, options.legend_classes)
    owner = np.full(image_size, -1, np.int16)
    labels, areas, visible = [], np.zeros(0, int), np.zeros(0, int)
    fewest, most = options.objects_per_image
    for _ in range(rng.integers(fewest, most + 1)):
        if legend is None:
            shape = label = int(rng.integers(len(CLASSES)))
        else:
            shape = _CIRCLE
            label, colour = legend.choose_cell(rng)
        size = np.exp(rng.uniform(*np.log(options.object_size)))
        outline = random_outline(rng, shape, size)
        for _ in range(_PLACEMENT_TRIES):
            window, alpha = _place(rng, outline, (0, options.objects_top), image_size[::-1])
            mask = alpha >= 0.5
            hidden = owner[window][mask]
            remaining = visible - np.bincount(hidden[hidden >= 0], minlength=len(labels))
            if (remaining >= options.min_visible * areas).all():
                break
        else:
            continue
        if legend is None:
            _paint(rng, canvas, window, alpha, options.texture_contrast)
        else:
            canvas[window] += alpha[..., None] * (colour - canvas[window])
        owner[window][mask] = len(labels)
        labels.append(label)
        areas = np.append(areas, mask.sum())
        visible = np.append(remaining, mask.sum())
    grain = rng.standard_normal(canvas.shape, np.float32)
    canvas += np.float32(rng.uniform(1, 6)) * grain
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return ShapesImage(image, np.array(labels, np.int64), owner)


def _image_size(rng: np.random.Generator, options: ShapesOptions) -> tuple[int, int]:
    smallest, largest = options.image_size_range
    if smallest == largest:  # Nothing is drawn: what follows is as it was before there were ranges.
        return smallest
    height, width = rng.integers(smallest, largest, endpoint=True).tolist()
    return height, width


def _background(rng: np.random.Generator, height: int, width: int, contrast: float) -> np.ndarray:
    colour = rng.uniform(30, 225, 3)
    change = rng.normal(size=3)
    change *= contrast * rng.uniform(15, 90) / np.linalg.norm(change)
    canvas = blend(random_field(rng, height, width), colour - change / 2, colour + change / 2)
    return np.clip(canvas, 0, 255)


def _place(
    rng: np.random.Generator,
    outline: list[np.ndarray],
    low: tuple[float, float],
    limit: tuple[float, float],
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Put an outline at a random place wholly between the points ``low`` and ``limit``, in (x, y) pixels.

    Returns:
        The window of the image that holds the object, and the share of each of the window's
        pixels that the object covers (float32).
    """
    extent = np.concatenate(outline).max(axis=0)
    low, limit = np.array(low), np.array(limit)
    corner = rng.uniform(low, np.maximum(limit - extent, low))
    start = np.floor(corner).astype(int)
    stop = np.minimum(np.ceil(corner + extent).astype(int), limit)
    # fillPoly counts from the centre of the first pixel, the outline from its corner.
    contours = [
        ((contour + corner - start) * _SUPERSAMPLING - 0.5) * 2**_FRACTION_BITS
        for contour in outline
    ]
    columns, rows = (int(length) for length in stop - start)
    fine = np.zeros((rows * _SUPERSAMPLING, columns * _SUPERSAMPLING), np.float32)
    contours = [np.rint(contour).astype(np.int32) for contour in contours]
    cv2.fillPoly(fine, contours, 1.0, shift=_FRACTION_BITS)
    alpha = cv2.resize(fine, (columns, rows), interpolation=cv2.INTER_AREA)
    return (slice(start[1], stop[1]), slice(start[0], stop[0])), alpha


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    window: tuple[slice, slice],
    alpha: np.ndarray,
    contrast: float,
) -> None:
    """Paint an object into ``canvas``, in a colour that stands out from its surroundings."""
    colour = _contrasting_colour(rng, _surroundings(canvas, window, alpha))
    change = rng.normal(size=3)
    change *= contrast * rng.uniform(0, 20) / np.linalg.norm(change)
    texture = blend(random_field(rng, *alpha.shape), colour - change, colour + change)
    canvas[window] += alpha[..., None] * (np.clip(texture, 0, 255) - canvas[window])


def _surroundings(canvas: np.ndarray, window: tuple[slice, slice], alpha: np.ndarray) -> np.ndarray:
    """Colours next to the object, shape (pixels, 3)."""
    rows, columns = (slice(max(s.start - _MARGIN, 0), s.stop + _MARGIN) for s in window)
    colours = canvas[rows, columns]
    inside = np.zeros(colours.shape[:2], np.uint8)
    top, left = window[0].start - rows.start, window[1].start - columns.start
    inside[top : top + alpha.shape[0], left : left + alpha.shape[1]] = alpha > 0
    near = cv2.dilate(inside, np.ones((2 * _MARGIN + 1, 2 * _MARGIN + 1), np.uint8))
    colours = colours[near > inside]
    # An object that fills the whole image has nothing around it.
    return colours if len(colours) else canvas.reshape(-1, 3)


def _contrasting_colour(rng: np.random.Generator, surroundings: np.ndarray) -> np.ndarray:
    """Draw colours until one differs enough from 19 of 20 points around.

    Returns:
        RGB, shape (3,); the best one of the tries if none is good enough.
    """
    candidates = rng.uniform(20, 235, (_COLOUR_TRIES, 3)).astype(np.float32)
    sample = surroundings[:: len(surroundings) // 128 + 1]
    difference = np.linalg.norm(_lab(candidates)[:, None] - _lab(sample)[None], axis=2)
    contrast = np.sort(difference, axis=1)[:, len(sample) // 20]
    good = np.flatnonzero(contrast >= _MIN_CONTRAST)
    return candidates[good[0] if len(good) else contrast.argmax()]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of RGB colours, shape (N, 3) to (N, 3)."""
    return cv2.cvtColor(rgb[None] / np.float32(255), cv2.COLOR_RGB2LAB)[0]
