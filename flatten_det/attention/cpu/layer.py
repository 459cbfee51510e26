"""The whole layer at inference: projections, attention and convolution, tile by tile.

Neither q, k nor v ever exists as a whole: the keys' pass needs ``f(k)ᵀ x`` only, because
``f(k)ᵀ v = (f(k)ᵀ x) Wᵥᵀ + Σf(k) bᵥᵀ``, and the queries' pass computes v once more, rolling over the rows
that the convolution reaches. So the layer takes fresh memory for its output alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..folding import FoldedProjections
from ..maps import as_image
from .forward import Convolution, KeySums, attend
from .rows import Activation, focus
from .tiles import Buffers, Tile, tiles


class _Positions:
    """Rows of a learned grid resized to a map (bilinear, ``align_corners=False``).

    The grid is stretched along its width at once, which keeps it small, and along its height tile by tile.
    """

    def __init__(
        self, grid: Tensor, grid_size: tuple[int, int], bias: Tensor, hw_shape: tuple[int, int]
    ) -> None:
        (height, width), (to_height, to_width) = grid_size, hw_shape
        grid = grid.view(height, width, -1)
        if width != to_width:
            grid = F.interpolate(grid.transpose(1, 2), size=to_width, mode="linear")
            grid = grid.transpose(1, 2)
        self._grid = (grid + bias).flatten(1)  # [h, W*C]
        at = (torch.arange(to_height) + 0.5) * (height / to_height) - 0.5
        at = at.clamp(0, height - 1)
        self._above = at.long()
        self._below = (self._above + 1).clamp_max(height - 1)
        self._share_below = at - self._above

    def of_rows(self, rows: slice, out: Tensor) -> Tensor:
        """``(n, C)``, into ``out``."""
        above, below, share = (part[rows] for part in (self._above, self._below, self._share_below))
        first = int(above[0])
        weights = torch.zeros(len(share), int(below[-1]) - first + 1)
        weights.scatter_add_(1, (above - first)[:, None], (1 - share)[:, None])
        weights.scatter_add_(1, (below - first)[:, None], share[:, None])
        source = self._grid[first : first + weights.shape[1]]
        torch.mm(weights, source, out=out.view(len(share), -1))
        return out


class _RollingValues:
    """Rows of v as the convolutions need them: those of a tile and their neighbours above and below."""

    def __init__(
        self, x: Tensor, weight: Tensor, bias: Tensor, hw_shape: tuple[int, int], reach: int
    ) -> None:
        self._x, self._weight, self._bias = x, weight, bias
        self._hw_shape, self._reach = hw_shape, reach
        self._known = slice(0, 0)
        self._values: Tensor | None = None

    def of_tile(self, tile: Tile) -> tuple[Tensor, slice]:
        """``(b, C, H', W)`` channels last, and the tile's rows in it."""
        height, width = self._hw_shape
        top = max(tile.rows.start - self._reach, 0)
        bottom = min(tile.rows.stop + self._reach, height)
        if tile.rows.start == 0:
            self._known = slice(0, 0)
        new = slice(max(self._known.stop, top) * width, bottom * width)
        x = self._x[tile.batch, new]
        values = F.linear(x, self._weight, self._bias)
        if self._known.stop > top:
            kept = self._values[:, (top - self._known.start) * width :]
            values = torch.cat([kept, values], dim=1)
        self._known, self._values = slice(top, bottom), values
        rows = slice(tile.rows.start - top, tile.rows.stop - top)
        return as_image(values, (bottom - top, width)), rows


def forward(
    x: Tensor,
    folded: FoldedProjections,
    grid_size: tuple[int, int],
    convolutions: list[Convolution],
    proj_weight: Tensor,
    proj_bias: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
) -> Tensor:
    """The layer without autograd, in float32.

    Args:
        x: ``(B, H*W, C)``.
        folded: see :class:`~flatten_det.attention.folding.FoldedProjections`.
        grid_size: ``(h, w)`` of the positions.
        convolutions: of V, to be added to the attention.
        proj_weight, proj_bias: the output projection.
        num_heads: h.
        hw_shape: ``(H, W)``.
        eps: of the normaliser.

    Returns:
        ``(B, H*W, C)``.
    """
    B, N, C = x.shape
    buffers = Buffers()
    activation = Activation(None, folded.floor, folded=True)
    q_weight, _, v_weight = folded.weight.chunk(3)
    q_bias, _, v_bias = folded.bias.chunk(3)
    sums = _key_sums(x, folded, grid_size, activation, num_heads, hw_shape, buffers)
    out = torch.empty(B, N, C)
    reach = max((convolution.weight.shape[-1] // 2 for convolution in convolutions), default=0)
    values = _RollingValues(x, v_weight, v_bias, hw_shape, reach)
    for tile in tiles(B, hw_shape, C):
        part = x[tile.batch, tile.tokens]
        queries = buffers("a", *part.shape)
        _project(part, q_weight, q_bias, queries)
        rows = focus(activation(queries, out=queries).flatten(0, 1), buffers)
        result = attend(rows, sums, tile, eps, buffers("out", *part.shape))
        if convolutions:
            image, own_rows = values.of_tile(tile)
            for convolution in convolutions:
                result += convolution.of_rows(image, own_rows)
        _project(result, proj_weight, proj_bias, out[tile.batch, tile.tokens])
    return out


def _key_sums(
    x: Tensor,
    folded: FoldedProjections,
    grid_size: tuple[int, int],
    activation: Activation,
    num_heads: int,
    hw_shape: tuple[int, int],
    buffers: Buffers,
) -> KeySums:
    B, N, C = x.shape
    _, k_weight, v_weight = folded.weight.chunk(3)
    _, k_bias, v_bias = folded.bias.chunk(3)
    positions = _Positions(folded.positions, grid_size, k_bias, hw_shape)
    keys_x, keys_sum = torch.zeros(B, C, C), torch.zeros(B, C)
    for tile in tiles(B, hw_shape, C):
        part = x[tile.batch, tile.tokens]
        keys = buffers("a", *part.shape)
        bias = positions.of_rows(tile.rows, buffers("positions", *part.shape[1:]))
        _project(part, k_weight, bias, keys)
        rows = focus(activation(keys, out=keys).flatten(0, 1), buffers)
        focused = rows.values().view(part.shape)
        keys_sum[tile.batch] += focused.sum(dim=1)
        keys_x[tile.batch].baddbmm_(focused.transpose(1, 2), part)
    d = C // num_heads
    sums = KeySums(B, num_heads, d)
    sums.k[:] = keys_sum.view(B, num_heads, d)
    by_head = keys_x.view(B, num_heads, d, C)
    v_weight, v_bias = (p.unflatten(0, (num_heads, d)) for p in (v_weight, v_bias))
    torch.matmul(by_head, v_weight.transpose(1, 2), out=sums.kv)
    sums.kv += sums.k.unsqueeze(-1) * v_bias.unsqueeze(1)
    sums.finish(N)
    return sums


def _project(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """``x @ weight.T + bias`` into ``out``; the bias is ``(C,)`` or ``(n, C)``."""
    if len(x) == 1:
        torch.addmm(bias, x[0], weight.t(), out=out[0])
    else:
        torch.matmul(x, weight.t(), out=out).add_(bias)
