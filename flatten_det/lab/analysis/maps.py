"""The weights of one query as a map over the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .capture import LayerCall
from .convolution import typical_channels
from .matrices import Variant, Weights, variants_of
from .projections import project
from .windows import Windows


@dataclass(frozen=True)
class WeightMap:
    """What one query gives to every key.

    Attributes:
        variant: which weights.
        weights: ``(height, width)`` of the map of the keys; NaN outside of the query's window. With a
            convolution of the channel with the median kernel, and of either sign.
        channel: with a convolution, of the head.
    """

    variant: Variant
    weights: np.ndarray
    channel: int | None


def query_token(point: tuple[float, float], hw_shape: tuple[int, int]) -> int:
    """The token at a point ``(x, y)``, both from 0 to 1 of the image's width and height."""
    (x, y), (height, width) = point, hw_shape
    row, column = (min(int(p * size), size - 1) for p, size in ((y, height), (x, width)))
    return row * width + column


def weight_maps(call: LayerCall, head: int, token: int) -> list[WeightMap]:
    """The weights of a query in all variants of a layer.

    Args:
        call: of the layer.
        head: from 0.
        token: the query.

    Raises:
        ValueError: there is no such head.
    """
    parts = [
        part
        for part in project(call.layer.module, call.tokens, call.hw_shape)
        if head in part.heads
    ]
    if not parts:
        raise ValueError(f"layer {call.layer.name} has no head {head}")
    part, window, row = _find(parts, token)
    position = part.heads.index(head)
    maps = []
    for variant in variants_of(part):
        weights = Weights(part, variant)
        channel = typical_channels(part, position, 1)[0] if variant.convolution else None
        if channel is None:
            values = weights.matrix(window, position, row)
        else:
            values = weights.with_convolution(window, position, channel, row)
        maps.append(WeightMap(variant, _as_map(values[0], part, window, call.hw_shape), channel))
    return maps


def _find(parts: Sequence[Windows], token: int) -> tuple[Windows, int, torch.Tensor]:
    for part in parts:
        places = (part.tokens == token).nonzero()
        if len(places):
            return part, int(places[0, 0]), places[0, 1:]
    raise ValueError(f"there is no token {token}")


def _as_map(
    values: torch.Tensor, part: Windows, window: int, hw_shape: tuple[int, int]
) -> np.ndarray:
    if part.key_shape != part.query_shape:
        return values.view(part.key_shape).numpy()
    tokens = part.tokens[window]
    inside = tokens >= 0
    whole = torch.full((hw_shape[0] * hw_shape[1],), float("nan"), dtype=values.dtype)
    whole[tokens[inside]] = values[inside]
    return whole.view(hw_shape).numpy()
