"""Cutting a feature map into windows and putting it together again."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pad ``(B, H, W, C)`` with zeros at the bottom and right to multiples of ``multiple``."""
    pad_h = -x.shape[1] % multiple[0]
    pad_w = -x.shape[2] % multiple[1]
    return F.pad(x, (0, 0, 0, pad_w, 0, pad_h)) if pad_h or pad_w else x


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """``(B, H, W, ...)`` -> ``(B, nW, h*w, ...)``; H and W are multiples of the window ``(h, w)``."""
    B, H, W, *rest = x.shape
    h, w = window
    x = x.unflatten(2, (W // w, w)).unflatten(1, (H // h, h)).transpose(2, 3)
    return x.reshape(B, (H // h) * (W // w), h * w, *rest)


def window_merge(windows: Tensor, window: tuple[int, int], hw_shape: tuple[int, int]) -> Tensor:
    """Inverse of :func:`window_partition`: ``(B, nW, h*w, C)`` -> ``(B, H, W, C)``."""
    B, _, _, C = windows.shape
    (h, w), (H, W) = window, hw_shape
    x = windows.view(B, H // h, W // w, h, w, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B, H, W, C)
