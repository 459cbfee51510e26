"""Learned grids: per-token parameters that live on the pretraining map and follow the feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_grid(grid: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Resize a learned grid bilinearly (``align_corners=False``) from one map size to another.

    Args:
        grid: ``(1, h*w, C)``, row-major over ``from_hw``.
        from_hw: ``(h, w)`` that the grid was learned on.
        to_hw: ``(H, W)`` of the feature map.

    Returns:
        ``(1, H*W, C)``; the grid itself when the sizes agree.
    """
    if tuple(from_hw) == tuple(to_hw):
        return grid
    h, w = from_hw
    image = grid.reshape(1, h, w, -1).permute(0, 3, 1, 2)
    # Interpolation weights lose too much in half precision for a parameter that is added everywhere.
    dtype = torch.promote_types(grid.dtype, torch.float32)
    image = F.interpolate(image.to(dtype), size=tuple(to_hw), mode="bilinear", align_corners=False)
    return image.flatten(2).transpose(1, 2).to(grid.dtype)
