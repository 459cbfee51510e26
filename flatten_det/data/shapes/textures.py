"""Random textures: a field of values in [0, 1] that blends two colours."""

import cv2
import numpy as np


def random_field(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draw one field of a random kind: gradient, noise, stripes, checker or blobs.

    Returns:
        float32 array of shape (height, width) with values in [0, 1].
    """
    kind = _FIELDS[rng.integers(len(_FIELDS))]
    return kind(rng, height, width).astype(np.float32)


def blend(field: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Colour a field.

    Args:
        field: Values in [0, 1] of shape (H, W).
        low: RGB colour of the value 0, shape (3,).
        high: RGB colour of the value 1, shape (3,).

    Returns:
        float32 image of shape (H, W, 3).
    """
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


_FIELDS = (_gradient, _noise, _stripes, _checker, _blobs)
