"""Outlines of the classes: closed contours around the origin, before size and rotation."""

from collections.abc import Callable

import numpy as np

from .options import CLASSES

_ROUND = 64  # Corners of a circle: less than 0.1 px off at 128 px.


def random_outline(rng: np.random.Generator, label: int, size: float) -> list[np.ndarray]:
    """Draw the outline of one object, slightly stretched and rotated at random.

    Args:
        rng: Source of the proportions, the stretch and the angle.
        label: Index into :data:`~flatten_det.data.shapes.options.CLASSES`.
        size: Longer side of the outline's bounding box in pixels.

    Returns:
        Contours of shape (corners, 2) in (x, y) pixels whose common bounding box starts at
        (0, 0); a point is inside when an odd number of contours surrounds it.
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
