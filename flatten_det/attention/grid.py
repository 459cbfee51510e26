"""Learned grids: per-token parameters that live on the pretraining map and follow the feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import as_image, as_tokens
from .size_cache import SizeCache, tensors_have_values


class ResizedGrids:
    """A learned grid on the maps of the last few sizes, for inference.

    In training the grid changes with every step, and its gradient is needed: then nothing is kept. A
    change of the weights in place (``load_state_dict``, an optimizer's step) or for others (``.data``,
    ``.to``) is noticed. Only what is written through ``.data`` into the same memory is not, as little as
    by autograd: a call of ``train()`` forgets everything.
    """

    def __init__(self) -> None:
        self._cache = SizeCache()
        self._grid: tuple[int, int] | None = None

    def __call__(self, grid: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
        """As :func:`resize_grid`; the result is not to be changed."""
        is_same = tuple(from_hw) == tuple(to_hw)
        if torch.is_grad_enabled() or is_same or not tensors_have_values() or grid.is_inference():
            return resize_grid(grid, from_hw, to_hw)
        state = (grid.data_ptr(), grid._version)
        if state != self._grid:
            self.clear()
            self._grid = state
        key = (*to_hw, grid.dtype, grid.device)
        return self._cache(key, lambda: resize_grid(grid, from_hw, to_hw))

    def clear(self) -> None:
        """Forget everything."""
        self._cache.clear()


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
    image = as_image(grid, (h, w))
    # Interpolation weights lose too much in half precision for a parameter that is added everywhere.
    dtype = torch.promote_types(grid.dtype, torch.float32)
    image = F.interpolate(image.to(dtype), size=tuple(to_hw), mode="bilinear", align_corners=False)
    return as_tokens(image).to(grid.dtype)
