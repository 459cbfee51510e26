"""Pictures of the images with most errors: truth beside prediction, what is wrong marked by its kind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ..output import save_figure
from .error_kinds import KINDS, RIGHT
from .figures import DPI, FONT, TINY_FONT, shown

_SIDE = 4.4  # inches of a panel's longer side
# Short names, colours, dashes and widths: told apart without colour too.
_STYLES = {
    RIGHT: ("", "#5fd35f", "-", 0.9),
    0: ("cls", "#ff9d2e", "--", 1.6),
    1: ("loc", "#ffe14d", "-.", 1.6),
    2: ("both", "#c79bff", ":", 1.6),
    3: ("dup", "#4dc3ff", (0, (1, 1)), 1.6),
    4: ("bkg", "#ff5a5a", "-", 2.0),
    5: ("miss", "#ff5a5a", (0, (4, 2)), 2.0),
}
_OUTLINE = [withStroke(linewidth=3, foreground="black")]
_TEXT_BOX = dict(facecolor="white", edgecolor="none", alpha=0.75, pad=0.8)
_LINE, _LETTER = 0.12, 0.45  # inches of a line of small text; width of a letter, in lines
_NAMED = 0.01  # share of an image from which on a class is named in it
_IGNORED, _WRONG, _RIGHT_GREY = 0.55, 0.0, 1.0


@dataclass(frozen=True)
class Shape:
    """An object or a detection, as it is drawn.

    ``outline`` are closed lines ``(N, 2)`` of x and y in pixels; ``kind`` is a number in KINDS, or RIGHT.
    """

    outline: Sequence[np.ndarray]
    name: str
    kind: int


def box_outline(box: Sequence[float]) -> list[np.ndarray]:
    """Of a COCO box: x, y, width, height."""
    x, y, width, height = box
    return [np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])]


def mask_outline(mask: np.ndarray) -> list[np.ndarray]:
    """Of a mask (H, W) of 0 and 1."""
    contours, _ = cv2.findContours(
        np.ascontiguousarray(mask, np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
    )
    return [contour[:, 0].astype(float) for contour in contours]


def draw_detections(
    image: np.ndarray, objects: Sequence[Shape], detections: Sequence[Shape], path: Path
) -> None:
    """A PNG of an RGB image with the objects, and with the detections that count; what is wrong is named.

    Objects that were not found are of the kind of what was nearly them, or missed.
    """
    figure, panels = _panels(image, 1, 2)
    kinds = set()
    for axes, title, shapes in zip(
        panels, ("truth", "prediction"), (objects, detections), strict=True
    ):
        axes.imshow(image)
        axes.set_title(title, fontsize=FONT)
        # Errors above what is right.
        for shape in sorted(shapes, key=lambda shape: shape.kind != RIGHT):
            _draw_shape(axes, shape)
            kinds.add(shape.kind)
        _name_errors(axes, shapes)
    kinds = sorted(kinds)
    figure.legend(
        [
            Line2D([], [], color=color, linestyle=dash, linewidth=width, path_effects=_OUTLINE)
            for _, color, dash, width in map(_STYLES.get, kinds)
        ],
        [_legend(kind) for kind in kinds],
        loc="outside lower center",
        ncols=4,
        fontsize=TINY_FONT,
        frameon=False,
        handlelength=4,
    )
    save_figure(figure, path, DPI, colours=None)


def _legend(kind: int) -> str:
    if kind == RIGHT:
        return "right"
    short = _STYLES[kind][0]
    return f"{short}: {'class and place' if KINDS[kind] == short else KINDS[kind]}"


def _draw_shape(axes: Axes, shape: Shape) -> None:
    _, color, dash, width = _STYLES[shape.kind]
    for line in shape.outline:
        closed = np.concatenate([line, line[:1]])
        axes.plot(*closed.T, color="black", linewidth=width + 1.2, solid_joinstyle="miter")
        axes.plot(*closed.T, color=color, linestyle=dash, linewidth=width)


def _name_errors(axes: Axes, shapes: Sequence[Shape]) -> None:
    """Write class and kind at what is wrong, below one another where they would cover each other."""
    height = axes.get_ylim()[0]
    line = _LINE * max(height, axes.get_xlim()[1]) / _SIDE
    taken: list[tuple[float, float, float]] = []
    for shape in shapes:
        if shape.kind == RIGHT or not len(shape.outline):
            continue
        x, y = np.maximum(np.concatenate(shape.outline).min(0), 0)
        text = f"{shown(shape.name)} {_STYLES[shape.kind][0]}"
        end, y = x + _LETTER * len(text) * line, max(y, line)
        while y < height and any(abs(y - at) < line and x < e and end > b for at, b, e in taken):
            y += line
        taken.append((y, x, end))
        axes.text(x, y, text, fontsize=TINY_FONT, va="bottom", bbox=_TEXT_BOX, clip_on=True)


def _panels(image: np.ndarray, rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    # The narrowest ones still have room for a title and the legend.
    size = max(width * scale, 1.6) * columns + 0.2, max(height * scale, 0.8) * rows + 0.5
    figure = Figure(size, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        axes.autoscale(False)
    return figure, panels


def class_colours(palette: Sequence | None, classes: int) -> np.ndarray:
    """RGB (classes, 3) of uint8: a data set's palette, or one of matplotlib's if it has none that fits."""
    given = np.array(palette) if palette else np.zeros(0)
    if given.shape == (classes, 3) and given.dtype.kind in "iu":
        return given.clip(0, 255).astype(np.uint8)
    steps = np.arange(classes) / max(classes, 1)
    colours = colormaps["tab20"](np.arange(classes)) if classes <= 20 else colormaps["hsv"](steps)
    return (255 * colours[:, :3]).astype(np.uint8)


def draw_labels(
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    ignored: int,
    names: Sequence[str],
    colours: np.ndarray,
    path: Path,
) -> None:
    """A PNG of an RGB image of any size, its true and predicted labels (H, W), and where these differ.

    Large classes are named. Pixels whose true label is ``ignored`` do not count.
    """
    image = cv2.resize(image, truth.shape[::-1], interpolation=cv2.INTER_AREA)
    figure, panels = _panels(image, 2, 2)
    errors = np.where(truth == predicted, _RIGHT_GREY, _WRONG)
    errors[truth == ignored] = _IGNORED
    titles = ("image", "truth", "prediction", "wrong: black; not counted: grey")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=FONT)
    panels[0].imshow(image)
    for axes, labels in zip(panels[1:], (truth, predicted), strict=False):
        axes.imshow(_painted(labels, colours), interpolation="nearest")
        _name_classes(axes, labels, names)
    panels[3].imshow(errors, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    save_figure(figure, path, DPI, colours=None)


def _painted(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    is_class = (labels >= 0) & (labels < len(colours))
    painted = colours[np.where(is_class, labels, 0)]
    painted[~is_class] = 255
    return painted


def _name_classes(axes: Axes, labels: np.ndarray, names: Sequence[str]) -> None:
    """Write the names of the larger classes where each is widest."""
    present, counts = np.unique(labels, return_counts=True)
    for label in present[counts >= _NAMED * labels.size]:
        if not 0 <= label < len(names):
            continue
        inside = np.pad(labels == label, 1).astype(np.uint8)
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        style = dict(fontsize=TINY_FONT, ha="center", va="center", bbox=_TEXT_BOX, clip_on=True)
        axes.text(x - 1, y - 1, shown(names[label], 16), **style)
