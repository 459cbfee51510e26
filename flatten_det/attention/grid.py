"""Learned grids: per-token parameters that live on the pretraining map and follow the feature map."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import Padding, as_image, as_tokens
from .reference import without_autocast


class GridRows:
    """Rows of a learned grid resized as by :func:`resize_grid`, which never exists as a whole.

    The grid is stretched along its width at once, which keeps it small, and along its height as rows are
    asked for.

    Args:
        grid: ``(1, h*w, C)``, without gradients.
        from_hw: ``(h, w)`` that the grid was learned on.
        to_hw: ``(H, W)`` of the feature map.
    """

    def __init__(self, grid: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> None:
        (height, width), (to_height, to_width) = from_hw, to_hw
        rows = grid.reshape(height, width, -1)  # A parametrised one may have any layout.
        if width != to_width:
            shares = _shares(_places(0, to_width, width, to_width), slice(0, width))
            rows = torch.matmul(shares.to(rows), rows)
        self._rows = rows.flatten(1)  # [h, W*C]
        self._height, self._to_height, self._to_width = height, to_height, to_width

    def of_rows(self, rows: slice, out: Tensor) -> Tensor:
        """Those of the map's ``rows`` into ``out (n, C)``, contiguous."""
        shares, source = self._interpolation(rows)
        torch.mm(shares, source, out=out.view(len(shares), -1))
        return out

    def add_to(self, tokens: Tensor, rows: slice) -> None:
        """Add those of the map's ``rows`` to ``tokens (n, C)``, contiguous, in place."""
        shares, source = self._interpolation(rows)
        tokens.view(len(shares), -1).addmm_(shares, source)

    def _interpolation(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Shares of the grid's rows in ``rows``, and the grid's rows that have one."""
        places = _places(rows.start, rows.stop, self._height, self._to_height)
        own = slice(int(places[0]), min(int(places[-1]) + 2, self._height))
        return _shares(places, own).to(self._rows), self._rows[own]


def _places(start: int, stop: int, size: int, to_size: int) -> Tensor:
    """Where points of an axis of ``to_size`` lie on one of ``size`` (``align_corners=False``)."""
    points = torch.arange(start, stop, dtype=torch.float64)
    return ((points + 0.5) * (size / to_size) - 0.5).clamp(0, size - 1)


def _shares(places: Tensor, own: slice) -> Tensor:
    """Shares of the whole points ``own`` at ``places (n,)`` between them, ``(n, own)``."""
    own_points = torch.arange(own.start, own.stop, dtype=torch.float64)
    return (1 - (places[:, None] - own_points).abs()).clamp_min(0)


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


def resize_grid_to_each(grid: Tensor, padding: Padding) -> Tensor:
    """:func:`resize_grid` to the size of each map of a padded batch.

    Args:
        grid: ``(1, h*w, C)``, row-major.
        padding: of the maps, with :func:`shares_of_grid` of the grid's size.

    Returns:
        ``(B, H*W, C)``, zero in the padding.
    """
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

    Args:
        sizes, grid_sizes: points of the axes, and of the grids, of the same shape.
        points, grid_points: that there are at most.

    Returns:
        ``(..., points, grid_points)``, zero beyond the ends.
    """
    device = sizes.device
    ticks = torch.arange(0.5, points, device=device)
    ratios, ends = (grid_sizes / sizes).unsqueeze(-1), (grid_sizes - 1).unsqueeze(-1)
    places = (ratios * ticks - 0.5).clamp(min=0).minimum(ends)
    places = places.masked_fill(ticks > sizes.unsqueeze(-1), -1)
    distances = places.unsqueeze(-1) - torch.arange(grid_points, device=device)
    return (1 - distances.abs()).clamp(min=0)
