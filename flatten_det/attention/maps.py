"""Tokens as a feature map and back.

The map of tokens is a view with the channels last, which convolutions take as it is. How the view is made
matters: ``transpose`` before ``unflatten`` gives a batch of one a stride in which torch does not recognise
the layout, and a depthwise convolution on the CPU took 20 times as long.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Padding(NamedTuple):
    """What of a batch of maps is padding: all that is to the right of the maps themselves, and below.

    Attributes:
        sizes: ``(B, 2)`` int32, height and width of each map without it.
        mask: ``(B, N, 1)`` bool, True for the tokens that are padding.
        rows, columns: ``(B, H, h)`` and ``(B, W, w)``, shares of the rows and columns of a learned grid in
            those of each map, see :func:`.grid.resize_grid_to_each`; None where there is no grid.
    """

    sizes: Tensor
    mask: Tensor
    rows: Tensor | None = None
    columns: Tensor | None = None


def is_padding(sizes: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """``(B, H, W)`` bool for :class:`Padding` of maps of ``hw_shape``, from their ``sizes (B, 2)``."""
    ticks = torch.arange(max(hw_shape), device=sizes.device)
    below = ticks[: hw_shape[0]] >= sizes[:, :1]
    beside = ticks[: hw_shape[1]] >= sizes[:, 1:]
    return below.unsqueeze(2) | beside.unsqueeze(1)


def as_image(tokens: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """``(B, H*W, C)`` -> ``(B, C, H, W)``, channels last: a view."""
    return tokens.unflatten(1, hw_shape).permute(0, 3, 1, 2)


def as_tokens(image: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, H*W, C)``: a view if the channels are last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)
