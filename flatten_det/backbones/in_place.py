"""Computing in place at inference: the first touch of fresh memory costs more than arithmetic."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..attention.eager import has_hooks_or_own_forward, is_from_known_library, is_plain_eager
from ..attention.maps import as_image

# Entries of a portion of tokens: 1 MB in float32.
_PORTION = 1 << 18


def computes_in_place(module: nn.Module, x: Tensor) -> bool:
    """Whether the tensors between the parts of ``module``, called with ``x``, are nobody else's.

    Autograd needs them as they were, so may hooks and strangers' modules that were given one, and a compiler
    plans the memory itself. Other devices than the CPU keep freed memory at hand: nothing to gain, and
    looking for hooks takes a millisecond in a large backbone.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or not is_plain_eager():
        return False
    parts = module.modules()
    next(parts)  # Hooks of the module itself are given its inputs and outputs alone.
    return all(
        is_from_known_library(type(part)) and not has_hooks_or_own_forward(part) for part in parts
    )


def apply_in_place(norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(x)`` in the memory of the contiguous ``x (B, N, C)``, a few tokens at a time."""
    for part in x.flatten(0, 1).split(max(_PORTION // x.shape[-1], 1)):
        part.copy_(norm(part))
    return x


def row_portions(hw_shape: tuple[int, int], channels: int) -> Iterator[slice]:
    """Some rows at a time of a map of ``channels``."""
    height, width = hw_shape
    rows = max(_PORTION // (channels * width), 1)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def as_contiguous_image(tokens: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """``(B, H*W, C)`` -> ``(B, C, H, W)``, contiguous.

    The layout that everybody takes: compiled operators of mmcv read memory as if it had it.
    """
    image = as_image(tokens, hw_shape)
    is_plain = not torch.is_grad_enabled() and is_plain_eager()
    if not is_plain or tokens.device.type != "cpu" or image.is_contiguous():
        return image.contiguous()
    # Portions that stay in the cache transpose twice as fast.
    out = torch.empty(image.shape, dtype=tokens.dtype)
    for rows in row_portions(hw_shape, tokens.shape[-1]):
        out[:, :, rows] = image[:, :, rows]
    return out
