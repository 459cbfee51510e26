"""Feature maps of tokens: as images, in windows, with less resolution, and learned grids that follow them.

The map of tokens is a view with the channels last, which convolutions take as it is. How the view is made
matters: ``transpose`` before ``unflatten`` gives a batch of one a stride in which torch does not recognise
the layout, and a depthwise convolution on the CPU took 20 times as long.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .eager import without_autocast


class Padding(NamedTuple):
    """What of a batch of maps is padding: all that is to the right of the maps themselves, and below.

    Attributes:
        sizes: ``(B, 2)`` int32, height and width of each map without it.
        mask: ``(B, N, 1)`` bool, True for the tokens that are padding.
        rows, columns: ``(B, H, h)`` and ``(B, W, w)``, shares of the rows and columns of a learned grid in
            those of each map, see :func:`resize_grid_to_each`; None where there is no grid.
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


def are_numbers(sizes: Iterable[int]) -> bool:
    """Whether sizes are known: not symbols of an export, whose graph holds for the others too.

    What depends on symbols has to be computed for all sizes in the same way: a branch that is taken for one
    of them would be the only one in the graph.
    """
    return all(type(size) is int for size in sizes)


def pad_to_multiple(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pad ``(B, H, W, ...)`` with zeros at the bottom and right to multiples of ``multiple``."""
    # A sum that a compiler's algebra simplifies; it gets lost in remainders of remainders.
    pad_h, pad_w = (
        (size + m - 1) // m * m - size for size, m in zip(x.shape[1:3], multiple, strict=True)
    )
    if are_numbers((pad_h, pad_w)) and not (pad_h or pad_w):
        return x
    return F.pad(x, (*(0, 0) * (x.dim() - 3), 0, pad_w, 0, pad_h))


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """``(B, H, W, ...)`` -> ``(B, nW, h*w, ...)``; H and W are multiples of the window ``(h, w)``."""
    B, H, W, *rest = x.shape
    h, w = window
    x = x.unflatten(2, (W // w, w)).unflatten(1, (H // h, h)).transpose(2, 3)
    return x.reshape(B, (H // h) * (W // w), h * w, *rest)


def window_merge(windows: Tensor, window: tuple[int, int], hw_shape: tuple[int, int]) -> Tensor:
    """Inverse of :func:`window_partition`: ``(B, nW, h*w, C)`` -> ``(B, H, W, C)``."""
    (h, w), (H, W) = window, hw_shape
    # [B, H/h, h, W/w, w, C]
    x = windows.unflatten(2, (h, w)).unflatten(1, (H // h, W // w)).transpose(2, 3)
    return x.reshape(-1, H, W, x.shape[-1])


def strided_convolution(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """``conv(image)``; in float32 under the CPU's autocast.

    oneDNN computes strided convolutions wrongly in bfloat16. Seen with torch 2.15 on a CPU with AVX512-BF16:
    for maps one to seven tokens wide, or few channels, the output or the gradient of the weight is something
    else altogether, up to whatever the memory held before. They are so small a part of a backbone that
    float32 costs nothing that could be measured.
    """
    if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return conv(image)
    with torch.autocast("cpu", enabled=False):
        return conv(image.float())


def resize_grid(grid: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> Tensor:
    """Resize a learned grid bilinearly (``align_corners=False``) from one map size to another.

    ``(1, h*w, C)``, row-major, -> ``(1, H*W, C)``; the grid itself when the sizes agree.
    """
    if are_numbers(to_hw) and tuple(from_hw) == tuple(to_hw):
        return grid
    h, w = from_hw
    image = as_image(grid, (h, w))
    # Interpolation weights lose too much in half precision for a parameter that is added everywhere.
    dtype = torch.promote_types(grid.dtype, torch.float32)
    image = F.interpolate(image.to(dtype), size=tuple(to_hw), mode="bilinear", align_corners=False)
    return as_tokens(image).to(grid.dtype)


def resize_grid_to_each(grid: Tensor, padding: Padding) -> Tensor:
    """:func:`resize_grid` to the size of each map of a padded batch: ``(B, H*W, C)``, zero in the padding."""
    rows, columns = padding.rows, padding.columns
    (B, W, w), h = columns.shape, rows.shape[-1]
    with without_autocast(grid.device):
        image = grid.reshape(h, w, -1).to(rows.dtype)
        # Along its width at first, while it is low: two products, and nothing is copied.
        image = torch.bmm(columns.view(1, B * W, w).expand(h, -1, -1), image)  # [h, B*W, C]
        image = image.unflatten(1, (B, W)).transpose(0, 1).flatten(2)  # [B, h, W*C]
        image = torch.bmm(rows, image)  # [B, H, W*C]
    return image.view(B, -1, grid.shape[-1]).to(grid.dtype)


def shares_of_grid(sizes: Tensor, grid_sizes: Tensor, points: int, grid_points: int) -> Tensor:
    """Shares of a grid's points in those of axes that it is stretched to (``align_corners=False``).

    ``sizes`` and ``grid_sizes (...)`` are the points of axes and grids, at most ``points`` and
    ``grid_points``. The result ``(..., points, grid_points)`` is zero beyond the ends, and float64 if one of
    them is, or else float32.
    """
    ratios, ends = (grid_sizes / sizes).unsqueeze(-1), (grid_sizes - 1).unsqueeze(-1)
    ticks = torch.arange(0.5, points, device=ratios.device, dtype=ratios.dtype)
    places = (ratios * ticks - 0.5).clamp(min=0).minimum(ends)
    places = places.masked_fill(ticks > sizes.unsqueeze(-1), -1)
    distances = places.unsqueeze(-1) - torch.arange(grid_points, device=ratios.device)
    return (1 - distances.abs()).clamp(min=0)
