"""The whole layer at inference: projections, attention and convolution, tile by tile.

Neither q, k nor v ever exists as a whole: the keys' pass needs ``f(k)ᵀ x`` only, because
``f(k)ᵀ v = (f(k)ᵀ x) Wᵥᵀ + Σf(k) bᵥᵀ``, and the queries' pass computes v once more, rolling over the rows
that the convolution reaches. So the layer takes fresh memory for its output alone, whose page faults cost
more than arithmetic; and so does a pre-norm block's ``x + layer(norm(x))``, which normalises a tile where
it is read, in both passes, and adds it where the result is written.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .maps import GridRows, as_image
from .reference import FoldedProjections
from .tiled import Convolution, KeySums, attend
from .tiles import Activation, Buffers, Tile, focus, tiles


class Norm(NamedTuple):
    """A LayerNorm over the channels.

    Attributes:
        weight, bias: ``(C,)``.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    eps: float

    def folded_into(self, folded: FoldedProjections) -> FoldedProjections:
        """Projections of standardised tokens instead of normalised ones."""
        weight, bias = (
            folded.weight * self.weight,
            torch.addmv(folded.bias, folded.weight, self.bias),
        )
        return folded._replace(weight=weight, bias=bias)

    def standardised(self, x: Tensor, buffers: Buffers) -> Tensor:
        """Tokens ``x (b, n, C)`` of mean 0 and variance 1 over the channels.

        For the few channels of the first stages in half the time of ``layer_norm``.
        """
        centred = torch.sub(x, x.mean(-1, keepdim=True), out=buffers("tokens", *x.shape))
        variance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square_() / x.shape[-1]
        return centred.mul_((variance + self.eps).rsqrt_())


class _RollingValues:
    """Rows of v as the convolutions need them: those of a tile and their neighbours above and below."""

    def __init__(
        self, weight: Tensor, bias: Tensor, hw_shape: tuple[int, int], reach: int, buffers: Buffers
    ) -> None:
        self._weight, self._bias = weight, bias
        self._width, self._reach = hw_shape[1], reach
        self._buffers = buffers
        self._known = slice(0, 0)
        self._values: Tensor | None = None

    def of_tile(self, tile: Tile, tokens: Tensor) -> tuple[Tensor, slice]:
        """``(b, C, H', W)`` channels last, and the tile's rows in it.

        Args:
            tile: the next one of the map, or the first of another.
            tokens: what v is projected from, ``(b, n, C)``, of the tile and the rows below that are in reach.
        """
        maps, num_tokens, channels = tokens.shape
        first = tile.rows.start
        top, bottom = max(first - self._reach, 0), first + num_tokens // self._width
        if first == 0:
            self._known = slice(0, 0)
        known = max(self._known.stop, first)
        num_kept = (known - top) * self._width
        if num_kept:
            # A copy: the buffer takes the new rows.
            kept = self._values[:, (top - self._known.start) * self._width :].clone()
        values = self._buffers("values", maps, (bottom - top) * self._width, channels)
        if num_kept:
            values[:, :num_kept] = kept
        new = tokens[:, (known - first) * self._width :]
        _project(new, self._weight, self._bias, values[:, num_kept:])
        self._known, self._values = slice(top, bottom), values
        rows = slice(first - top, tile.rows.stop - top)
        return as_image(values, (bottom - top, self._width)), rows


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
    norm: Norm | None = None,
    inplace: bool = False,
) -> Tensor:
    """The layer without autograd, in float32.

    Args:
        x: ``(B, H*W, C)``.
        folded: see :class:`~flatten_det.attention.reference.FoldedProjections`.
        grid_size: ``(h, w)`` of the positions.
        convolutions: of V, to be added to the attention.
        proj_weight, proj_bias: the output projection.
        num_heads: h.
        hw_shape: ``(H, W)``.
        eps: of the normaliser.
        norm: compute ``x + layer(norm(x))``; None: ``layer(x)``.
        inplace: overwrite the contiguous ``x``.

    Returns:
        ``(B, H*W, C)``.
    """
    B, N, C = x.shape
    height, width = hw_shape
    buffers = Buffers()
    activation = Activation(None, folded.floor, folded=True)
    if norm is not None:
        folded = norm.folded_into(folded)
    q_weight, _, v_weight = folded.weight.chunk(3)
    q_bias, _, v_bias = folded.bias.chunk(3)
    sums = _key_sums(x, folded, grid_size, activation, num_heads, hw_shape, norm, buffers)
    # In place, a tile is overwritten when nothing reads it any more: neighbours need its v, which is kept.
    out = x if inplace else torch.empty(B, N, C)
    reach = max((convolution.weight.shape[-1] // 2 for convolution in convolutions), default=0)
    values = _RollingValues(v_weight, v_bias, hw_shape, reach, buffers)
    for tile in tiles(B, hw_shape, C):
        bottom = min(tile.rows.stop + reach, height)
        tokens = x[tile.batch, tile.tokens.start : bottom * width]
        tokens = tokens if norm is None else norm.standardised(tokens, buffers)
        own = tokens[:, : tile.size[1]]
        queries = buffers("a", *own.shape)
        _project(own, q_weight, q_bias, queries)
        rows = focus(activation(queries, out=queries).flatten(0, 1), buffers)
        result = attend(rows, sums, tile, eps, buffers("out", *own.shape))
        if convolutions:
            image, own_rows = values.of_tile(tile, tokens)
            for convolution in convolutions:
                result += convolution.of_rows(image, own_rows)
        part = out[tile.batch, tile.tokens]
        if norm is None:
            _project(result, proj_weight, proj_bias, part)
        else:
            torch.add(x[tile.batch, tile.tokens], proj_bias, out=part)
            _add_product(result, proj_weight, part)
    return out


def _key_sums(
    x: Tensor,
    folded: FoldedProjections,
    grid_size: tuple[int, int],
    activation: Activation,
    num_heads: int,
    hw_shape: tuple[int, int],
    norm: Norm | None,
    buffers: Buffers,
) -> KeySums:
    B, N, C = x.shape
    _, k_weight, v_weight = folded.weight.chunk(3)
    _, k_bias, v_bias = folded.bias.chunk(3)
    positions = GridRows(folded.positions, grid_size, hw_shape)
    keys_x, keys_sum = torch.zeros(B, C, C), torch.zeros(B, C)
    for tile in tiles(B, hw_shape, C):
        tokens = x[tile.batch, tile.tokens]
        tokens = tokens if norm is None else norm.standardised(tokens, buffers)
        keys = buffers("a", *tokens.shape)
        positions.of_rows(tile.rows, out=keys[0])
        torch.addcmul(k_bias, keys[0], folded.position_scale, out=keys[0])
        keys[1:] = keys[0]
        _add_product(tokens, k_weight, keys)
        rows = focus(activation(keys, out=keys).flatten(0, 1), buffers)
        focused = rows.values().view(tokens.shape)
        keys_sum[tile.batch] += focused.sum(dim=1)
        keys_x[tile.batch].baddbmm_(focused.transpose(1, 2), tokens)
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
    """``x @ weight.T + bias`` into the contiguous ``out``."""
    torch.addmm(bias, x.flatten(0, 1), weight.t(), out=out.view(-1, out.shape[-1]))


def _add_product(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Add ``x @ weight.T`` to the contiguous ``out``: a bias that is there already costs no pass."""
    out.view(-1, out.shape[-1]).addmm_(x.flatten(0, 1), weight.t())
