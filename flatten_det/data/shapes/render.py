"""Draw one image of the Shapes data set together with its instance masks.

With a legend, objects can be told apart only by what stands far from them. Like that of a map, each cell of
the legend, along the top edge, has a hue, and says by its brightness the class of all objects of this hue.
Cells, their hues, places and classes are drawn anew and independently for every image. The background is
grey and every object is a disc of one brightness: neither an object nor what surrounds it says its class,
only the one cell of the same hue does. The more cells, the closer their hues. The legend itself is
background in the annotations. ``legend_distance`` keeps objects away from it, farther than convolutions
reach, so that a model needs attention to do better than guess.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np

from .options import CLASSES, LEGEND_HEIGHT, SPLITS, ShapesOptions

_SUPERSAMPLING = 4
_FRACTION_BITS = 4
_PLACEMENT_TRIES = 12
_COLOUR_TRIES = 12
# CIE76 colour difference to the surroundings. About 2 is just noticeable; the texture of an
# object and the grain of the image take up to some 20 away again.
_MIN_CONTRAST = 35
_CIRCLE = CLASSES.index("circle")
_MARGIN = 3  # Width in pixels of the surroundings that an object is told apart from.
_ROUND = 64  # Corners of a circle: less than 0.1 px off at 128 px.
OBJECT_LUMA = 130.0  # with a legend
_LUMA_RANGE = (90.0, 170.0)  # of the legend, from the first class to the last
_CHROMA = 80.0
# Orthogonal to grey and to each other, in RGB.
_CHROMA_AXES = np.array([[2, -1, -1], [0, 3**0.5, -(3**0.5)]]) / 6**0.5


class ShapesImage(NamedTuple):
    """One rendered image.

    Attributes:
        image: RGB, uint8, shape (H, W, 3).
        labels: Class index of every object, int64, shape (N,).
        owner: Index of the object that is seen at a pixel, covering at least half of it, or -1 for the
            background; int16, shape (H, W). ``owner == i`` is the visible mask of object ``i``.
    """

    image: np.ndarray
    labels: np.ndarray
    owner: np.ndarray


def render(options: ShapesOptions, split: str, index: int) -> ShapesImage:
    """Draw image ``index`` of ``split``; it depends on nothing but the arguments.

    Class, size, place, angle, colour and texture of an object are drawn independently; only the
    colour is chosen to stand out from what surrounds the object. With a legend the class follows
    from the colour, and all objects are discs; see the head of this module.
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
    return tuple(rng.integers(smallest, largest, endpoint=True).tolist())


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

    Returns the window of the image that holds the object, and how far it covers each pixel (float32).
    """
    extent = np.concatenate(outline).max(axis=0)
    low, limit = np.array(low), np.array(limit)
    corner = rng.uniform(low, np.maximum(limit - extent, low))
    start = np.floor(corner).astype(int)
    stop = np.minimum(np.ceil(corner + extent).astype(int), limit)
    # fillPoly counts from the centre of the first pixel, the outline from its corner.
    contours = [
        np.rint(((contour + corner - start) * _SUPERSAMPLING - 0.5) * 2**_FRACTION_BITS)
        for contour in outline
    ]
    contours = [contour.astype(np.int32) for contour in contours]
    columns, rows = (stop - start).tolist()
    fine = np.zeros((rows * _SUPERSAMPLING, columns * _SUPERSAMPLING), np.float32)
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
    """The first RGB colour (3,) tried that differs enough from 19 of 20 points around; else the best."""
    candidates = rng.uniform(20, 235, (_COLOUR_TRIES, 3)).astype(np.float32)
    sample = surroundings[:: len(surroundings) // 128 + 1]
    difference = np.linalg.norm(_lab(candidates)[:, None] - _lab(sample)[None], axis=2)
    contrast = np.sort(difference, axis=1)[:, len(sample) // 20]
    good = np.flatnonzero(contrast >= _MIN_CONTRAST)
    return candidates[good[0] if len(good) else contrast.argmax()]


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of RGB colours, shape (N, 3) to (N, 3)."""
    return cv2.cvtColor(rgb[None] / np.float32(255), cv2.COLOR_RGB2LAB)[0]


class Legend(NamedTuple):
    """The legend of one image: each cell's class index, and the angle of its colour in radians; (cells,)."""

    classes: np.ndarray
    hues: np.ndarray

    @classmethod
    def draw(
        cls, rng: np.random.Generator, canvas: np.ndarray, cells: tuple[int, int], num_classes: int
    ) -> "Legend":
        """Choose a legend, and draw it into the uppermost rows of the background, which becomes grey.

        The canvas is RGB, float32 (H, W, 3). ``cells`` are the smallest and the largest number of them.
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


def random_outline(rng: np.random.Generator, label: int, size: float) -> list[np.ndarray]:
    """Draw the outline of one object of a class, slightly stretched and rotated at random.

    ``size`` is the longer side of its bounding box in pixels. Returns contours of shape (corners, 2) in
    (x, y) pixels whose common box starts at (0, 0); a point within an odd number of them is inside.
    """
    contours = _OUTLINES[CLASSES[label]](rng)
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]]) * [[stretch], [1 / stretch]]
    contours = [contour @ turn for contour in contours]
    corners = np.concatenate(contours)
    low, extent = corners.min(axis=0), np.ptp(corners, axis=0).max()
    return [(contour - low) * (size / extent) for contour in contours]


def _regular(corners: int, radius: float | np.ndarray = 1.0) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radius, (-1, 1))


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    return [_regular(_ROUND), _regular(_ROUND, rng.uniform(0.5, 0.65))]


def _star(rng: np.random.Generator) -> list[np.ndarray]:
    return [_regular(10, np.tile([1.0, rng.uniform(0.36, 0.46)], 5))]


def _cross(rng: np.random.Generator) -> list[np.ndarray]:
    arm = rng.uniform(0.24, 0.36)
    quarter = np.array([(arm, arm), (arm, 1), (-arm, 1)])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return [np.concatenate([quarter @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])]


_OUTLINES: dict[str, Callable[[np.random.Generator], list[np.ndarray]]] = {
    "circle": lambda rng: [_regular(_ROUND)],
    "ring": _ring,
    "triangle": lambda rng: [_regular(3)],
    "square": lambda rng: [np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)])],
    "star": _star,
    "cross": _cross,
}


def random_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random gradient, noise, stripes, checker or blobs: float32 (height, width) in [0, 1]."""
    kind = FIELDS[rng.integers(len(FIELDS))]
    return kind(rng, height, width).astype(np.float32)


def blend(field: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Colour a field (H, W) of values in [0, 1] from ``low`` to ``high``, RGB (3,): float32 (H, W, 3)."""
    low, high = np.float32(low), np.float32(high)
    return low + field[..., None] * (high - low)


def _rotated_coordinates(rng, height, width) -> tuple[np.ndarray, np.ndarray]:
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x = np.arange(width, dtype=np.float32)
    y = np.arange(height, dtype=np.float32)[:, None]
    return cos * x + sin * y, cos * y - sin * x


def _gradient(rng, height, width) -> np.ndarray:
    u, _ = _rotated_coordinates(rng, height, width)
    return (u - u.min()) / max(float(np.ptp(u)), 1.0)


def _noise(rng, height, width) -> np.ndarray:
    """Value noise: octaves of random grids, each twice as fine and weaker than the one before."""
    cell = np.exp(rng.uniform(np.log(4), np.log(64)))
    roughness = rng.uniform(0.3, 0.8)
    field, weight = np.zeros((height, width), np.float32), 1.0
    while cell >= 2:
        grid = rng.random((int(height / cell) + 2, int(width / cell) + 2), np.float32)
        field += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        cell, weight = cell / 2, weight * roughness
    field -= field.min()
    return field / max(float(field.max()), 1e-6)


def _stripes(rng, height, width) -> np.ndarray:
    u, _ = _rotated_coordinates(rng, height, width)
    period = np.exp(rng.uniform(np.log(5), np.log(40)))
    sharpness = rng.uniform(0.5, 4)
    wave = sharpness * np.sin(u * (2 * np.pi / period))
    return 0.5 + 0.5 * np.clip(wave, -1, 1)


def _checker(rng, height, width) -> np.ndarray:
    u, v = _rotated_coordinates(rng, height, width)
    frequency = np.pi / np.exp(rng.uniform(np.log(4), np.log(14)))
    return 0.5 + 0.5 * np.clip(4 * np.sin(u * frequency) * np.sin(v * frequency), -1, 1)


def _blobs(rng, height, width) -> np.ndarray:
    """Noise pushed towards its extremes: irregular patches with soft edges."""
    return np.clip(0.5 + rng.uniform(2, 6) * (_noise(rng, height, width) - 0.5), 0, 1)


FIELDS = (_gradient, _noise, _stripes, _checker, _blobs)
