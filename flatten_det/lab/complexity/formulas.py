"""FLOP formulas that torch's counter lacks; those of our own operators stand beside them."""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401, its import makes torch.ops.torchvision


def _matrix_vector(matrix: torch.Size, vector: torch.Size, **_: Any) -> int:
    return 2 * prod(matrix)


def _dot(left: torch.Size, right: torch.Size, **_: Any) -> int:
    return 2 * prod(left)


def _deformable_convolution(
    x: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any
) -> int:
    """The convolution alone; sampling its input is not counted."""
    return 2 * prod(out_shape) * prod(weight[1:])


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _matrix_vector,
    torch.ops.aten.dot: _dot,
    torch.ops.torchvision.deform_conv2d: _deformable_convolution,
}
