"""Tiles on the CPU: what all of them share, and the whole layer at inference, tile by tile.

In :func:`forward` neither q, k nor v ever exists as a whole: the keys' pass needs ``f(k)ᵀ x`` only, because
``f(k)ᵀ v = (f(k)ᵀ x) Wᵥᵀ + Σf(k) bᵥᵀ``, and the queries' pass computes v once more, rolling over the rows
that the convolution reaches. So the layer takes fresh memory for its output alone, whose page faults cost
more than arithmetic; and so does a pre-norm block's ``x + layer(norm(x))``, which normalises a tile where
it is read, in both passes, and adds it where the result is written.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import shares_of_grid

# Tokens of a tile of 64 channels. Measured: 2048 to 16384 differ little for the operators, the layer at
# inference gains 5 % from 8192 and more, as calls and the rows that two tiles need are fewer.
TILE_TOKENS = 8192
_TILE_CHANNELS = 64
_LEAST_TOKENS = 1024


class Tile(NamedTuple):
    """Some rows of one map, or several whole maps: slices of the batch, of the map's rows, of its tokens."""

    batch: slice
    rows: slice
    tokens: slice

    @property
    def size(self) -> tuple[int, int]:
        """Maps and tokens of each."""
        return self.batch.stop - self.batch.start, self.tokens.stop - self.tokens.start


def tiles(batch: int, hw_shape: tuple[int, int], channels: int) -> Iterator[Tile]:
    """All tiles of a batch of maps, about as large as suits the cache."""
    height, width = hw_shape
    wanted = max(TILE_TOKENS * _TILE_CHANNELS // channels, _LEAST_TOKENS)
    rows = min(max(wanted // width, 1), height)
    maps = max(wanted // (height * width), 1) if rows == height else 1
    for first in range(0, batch, maps):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            yield Tile(
                slice(first, min(first + maps, batch)),
                slice(top, bottom),
                slice(top * width, bottom * width),
            )


class Buffers:
    """Named scratch tensors that grow to the largest size asked for."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """An uninitialised float32 tensor; the same name gives the same memory."""
        size = torch.Size(shape).numel()
        kept = self._kept.get(name)
        if kept is None or kept.numel() < size:
            kept = self._kept[name] = torch.empty(size)
        return kept[:size].view(shape)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(b, n, C)`` -> ``(b*h, n, d)``; a view if there is one map or one head."""
    b, n, channels = x.shape
    heads = x.unflatten(-1, (num_heads, channels // num_heads)).transpose(1, 2)
    return heads.reshape(b * num_heads, n, channels // num_heads)


def merge_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(b*h, n, d)`` -> ``(b, n, h, d)``, a view to copy from."""
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2)


class GridRows:
    """Rows of a learned grid resized as by :func:`~.maps.resize_grid`, which never exists as a whole.

    The grid ``(1, h*w, C)``, without gradients, is stretched from ``(h, w)`` along its width at once, which
    keeps it small, and along its height as rows are asked for.
    """

    def __init__(self, grid: Tensor, from_hw: tuple[int, int], to_hw: tuple[int, int]) -> None:
        (height, width), (to_height, to_width) = from_hw, to_hw
        rows = grid.reshape(height, width, -1)  # A parametrised one may have any layout.
        sizes, grid_sizes = torch.tensor(to_hw, dtype=torch.float64), torch.tensor(from_hw)
        of_rows, of_columns = shares_of_grid(sizes, grid_sizes, max(to_hw), max(from_hw))
        if width != to_width:
            rows = torch.matmul(of_columns[:to_width, :width].to(rows), rows)
        self._shares = of_rows[:to_height, :height]  # [H, h]
        self._rows = rows.flatten(1)  # [h, W*C]

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
        shares = self._shares[rows]
        # Each row has a share of two neighbours at most, which are further down for lower rows.
        own = slice(int(shares[0].nonzero()[0]), int(shares[-1].nonzero()[-1]) + 1)
        return shares[:, own].to(self._rows), self._rows[own]


class Activation(NamedTuple):
    """How a token becomes non-negative: ``(ReLU(x) + eps) * inverse_scale``, or ``max(x, floor)``.

    The second form is the first one with everything but the maximum ``folded`` into the projection.

    Attributes:
        inverse_scale: 1 / softplus(s) per channel, or None for 1.
        floor: what remains of a negative entry, per channel: eps * inverse_scale.
    """

    inverse_scale: Tensor | None
    floor: Tensor
    folded: bool = False

    @classmethod
    def of(
        cls, scale: Tensor | None, eps: float, channels: int, floor: Tensor | None = None
    ) -> "Activation":
        """From the layer's parameter s ``(1, 1, C)``, or from the floor of folded projections."""
        if floor is not None:
            return cls(None, floor.detach().float(), folded=True)
        if scale is None:
            return cls(None, torch.full((channels,), eps))
        inverse_scale = 1 / F.softplus(scale.detach().float().flatten())
        return cls(inverse_scale, eps * inverse_scale)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Into ``out``, which may be ``x``."""
        if self.folded:
            return torch.maximum(x, self.floor, out=out)
        if x.dtype == out.dtype:
            torch.clamp_min(x, 0, out=out)
        else:
            out.copy_(x).clamp_min_(0)
        if self.inverse_scale is None:
            return out.add_(self.floor)
        return torch.addcmul(self.floor, out, self.inverse_scale, out=out)


# Length to which rows are brought before they are cubed. The eps in place of a negative entry would be
# 1e-7 or less in a unit vector, and its sixth power a subnormal number, with which arithmetic is ten times
# slower. Sixth powers reach 2^72 at the most; the gradients have its reciprocals.
LENGTH = 2.0**12


class Focused(NamedTuple):
    """Rows a > 0 of a tile, brought to one length; f_3(a) = ``norm * cube / cube_norm``.

    ``scaled (n, C)`` is ``LENGTH * a/|a|``, ``cube`` its elementwise third power; norms are ``(n, 1)``.
    """

    scaled: Tensor
    cube: Tensor
    norm: Tensor
    cube_norm: Tensor

    def values(self) -> Tensor:
        """f_3(a), ``(n, C)``; it overwrites ``cube``."""
        return self.cube.mul_(self.norm / self.cube_norm)


def focus(a: Tensor, buffers: Buffers) -> Focused:
    """Focus positive rows ``a (n, C)``, in place."""
    norm = torch.linalg.vector_norm(a, dim=-1).unsqueeze(-1)
    scaled = a.mul_(LENGTH / norm)
    cube = torch.pow(scaled, 3, out=buffers("cube", *a.shape))
    return Focused(scaled, cube, norm, torch.linalg.vector_norm(cube, dim=-1).unsqueeze(-1))


class KeySums:
    """What queries need of all keys: the means ``kv (B, h, d, d)`` of f(k)ᵀ v, ``k (B, h, d)`` of f(k)."""

    def __init__(self, batch: int, num_heads: int, head_dim: int) -> None:
        self.kv = torch.zeros(batch, num_heads, head_dim, head_dim)
        self.k = torch.zeros(batch, num_heads, head_dim)

    def add(self, tile: Tile, keys: Focused, values: Tensor) -> None:
        """Add a tile of keys and its ``values (b, n, C)``; it overwrites ``keys.cube``."""
        maps, tokens = tile.size
        heads = self.k.shape[1]
        focused = keys.values().view(maps, tokens, -1)
        self.k[tile.batch] += focused.sum(dim=1).unflatten(-1, (heads, -1))
        transposed = split_heads(focused, heads).transpose(1, 2)
        self.kv[tile.batch].flatten(0, 1).baddbmm_(transposed, split_heads(values, heads))

    def finish(self, num_tokens: int) -> None:
        """Sums to means."""
        self.kv /= num_tokens
        self.k /= num_tokens


def attend(queries: Focused, sums: KeySums, tile: Tile, eps: float, out: Tensor) -> Tensor:
    """The normalised attention of a tile of queries into ``out (b, n, C)``, contiguous float32."""
    maps, tokens = tile.size
    heads = sums.k.shape[1]
    cube = split_heads(queries.cube.view(maps, tokens, -1), heads)
    eps_term = (queries.cube_norm * (eps / queries.norm)).view(maps, 1, tokens, 1)
    k, kv = sums.k[tile.batch].flatten(0, 1), sums.kv[tile.batch].flatten(0, 1)
    normaliser = torch.bmm(cube, k.unsqueeze(-1)).unflatten(0, (maps, heads)).add_(eps_term)
    if heads == 1:
        torch.bmm(cube, kv, out=out)
        return out.div_(normaliser[:, 0])
    attended = torch.bmm(cube, kv)
    merged = out.unflatten(-1, (heads, -1))
    torch.div(merge_heads(attended, heads), normaliser.transpose(1, 2), out=merged)
    return out


class Convolution:
    """The depthwise convolution of V for the rows of a tile; heads share the ``weight (d, 1, K, K)``."""

    def __init__(self, weight: Tensor, bias: Tensor | None, num_heads: int) -> None:
        self.weight = weight.detach().float().repeat(num_heads, 1, 1, 1)
        self.bias = None if bias is None else bias.detach().float().repeat(num_heads)

    def of_rows(self, image: Tensor, rows: slice) -> Tensor:
        """Rows of the convolution of ``image (b, C, H, W)``, zero-padded, as ``(b, n, C)``."""
        padding = self.weight.shape[-1] // 2
        top, bottom = max(rows.start - padding, 0), min(rows.stop + padding, image.shape[2])
        band = image[:, :, top:bottom].float()
        convolved = F.conv2d(
            band, self.weight, self.bias, padding=padding, groups=self.weight.shape[0]
        )
        convolved = convolved[:, :, rows.start - top : rows.stop - top]
        return convolved.permute(0, 2, 3, 1).flatten(1, 2)


class FoldedProjections(NamedTuple):
    """What replaces the projections, the positions and the scale.

    Attributes:
        weight: of q, k and v, ``(3C, C)``.
        bias: ``(3C,)``.
        positions: on their own grid, ``(1, h*w, C)``, not scaled: a pass over them is left to their reader.
        position_scale: what they are to be multiplied by, ``(C,)``.
        floor: of q and k per channel, ``(C,)``.
    """

    weight: Tensor
    bias: Tensor
    positions: Tensor
    position_scale: Tensor
    floor: Tensor


def fold_projections(
    weight: Tensor, bias: Tensor | None, positions: Tensor, scale: Tensor, eps: float
) -> FoldedProjections:
    """Projections of q, k and v, ``(3C, C)``, with scale, eps and bias of the feature map in them.

    The feature map sees queries only as ``(ReLU(W x + b) + eps) / softplus(s)``, and keys with positions
    added before the ReLU. With r = 1/softplus(s) > 0 per channel this is ``max(r (W x + b) + eps r, eps r)``:
    the factors go into the weights, and one maximum per entry remains.
    """
    inverse = 1 / F.softplus(scale.flatten())
    floor = eps * inverse
    ones = torch.ones_like(inverse)
    factors = torch.cat([inverse, inverse, ones])
    bias = torch.zeros_like(factors) if bias is None else bias * factors
    bias = bias + torch.cat([floor, floor, 0 * ones])
    return FoldedProjections(weight * factors[:, None], bias, positions, inverse, floor)


class Layer(NamedTuple):
    """What the layer is computed with: :class:`FoldedProjections`, and the rest of its parameters.

    Attributes:
        grid_height, grid_width: of the positions.
        dwc_weight, dwc_bias: depthwise convolution of V, the same for all heads, or None.
        lepe_weight, lepe_bias: one with a kernel for every channel, or None.
        proj_weight, proj_bias: the output projection.
        eps: of the normaliser.
    """

    weight: Tensor
    bias: Tensor
    positions: Tensor
    position_scale: Tensor
    floor: Tensor
    grid_height: int
    grid_width: int
    dwc_weight: Tensor | None
    dwc_bias: Tensor | None
    lepe_weight: Tensor | None
    lepe_bias: Tensor | None
    proj_weight: Tensor
    proj_bias: Tensor
    num_heads: int
    eps: float


class Norm(NamedTuple):
    """A LayerNorm over the channels."""

    weight: Tensor
    bias: Tensor
    eps: float

    def folded_into(self, layer: Layer) -> Layer:
        """The layer with projections of standardised tokens instead of normalised ones."""
        bias = torch.addmv(layer.bias, layer.weight, self.bias)
        return layer._replace(weight=layer.weight * self.weight, bias=bias)

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

        Tiles of a map come in their order. ``tokens (b, n, C)`` is what v is projected from, of the tile and
        the rows below that are in reach.
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
        image = values.unflatten(1, (bottom - top, self._width)).permute(0, 3, 1, 2)
        return image, rows


def forward(
    x: Tensor,
    layer: Layer,
    hw_shape: tuple[int, int],
    norm: Norm | None = None,
    inplace: bool = False,
) -> Tensor:
    """``layer(x)`` or, with a norm, ``x + layer(norm(x))``, without autograd, in float32.

    ``(B, H*W, C)`` to ``(B, H*W, C)``; ``inplace``: overwrite the contiguous ``x``.
    """
    B, N, C = x.shape
    height, width = hw_shape
    buffers = Buffers()
    dwc = (layer.dwc_weight, layer.dwc_bias, layer.num_heads)
    lepe = (layer.lepe_weight, layer.lepe_bias, 1)
    convolutions = [Convolution(*own) for own in (dwc, lepe) if own[0] is not None]
    activation = Activation(None, layer.floor, folded=True)
    if norm is not None:
        layer = norm.folded_into(layer)
    q_weight, _, v_weight = layer.weight.chunk(3)
    q_bias, _, v_bias = layer.bias.chunk(3)
    sums = _key_sums(x, layer, activation, hw_shape, norm, buffers)
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
        result = attend(rows, sums, tile, layer.eps, buffers("out", *own.shape))
        if convolutions:
            image, own_rows = values.of_tile(tile, tokens)
            for convolution in convolutions:
                result += convolution.of_rows(image, own_rows)
        part = out[tile.batch, tile.tokens]
        if norm is None:
            _project(result, layer.proj_weight, layer.proj_bias, part)
        else:
            torch.add(x[tile.batch, tile.tokens], layer.proj_bias, out=part)
            _add_product(result, layer.proj_weight, part)
    return out


def _key_sums(
    x: Tensor,
    layer: Layer,
    activation: Activation,
    hw_shape: tuple[int, int],
    norm: Norm | None,
    buffers: Buffers,
) -> KeySums:
    """Sums over all keys, whose ``layer`` takes standardised tokens if there is a norm."""
    B, N, C = x.shape
    num_heads = layer.num_heads
    _, k_weight, v_weight = layer.weight.chunk(3)
    _, k_bias, v_bias = layer.bias.chunk(3)
    positions = GridRows(layer.positions, (layer.grid_height, layer.grid_width), hw_shape)
    keys_x, keys_sum = torch.zeros(B, C, C), torch.zeros(B, C)
    for tile in tiles(B, hw_shape, C):
        tokens = x[tile.batch, tile.tokens]
        tokens = tokens if norm is None else norm.standardised(tokens, buffers)
        keys = buffers("a", *tokens.shape)
        positions.of_rows(tile.rows, out=keys[0])
        torch.addcmul(k_bias, keys[0], layer.position_scale, out=keys[0])
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
