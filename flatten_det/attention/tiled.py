"""Focused linear attention on the CPU, in tiles that stay in the cache.

What the plain version costs on a CPU is not arithmetic but fresh memory: each of its some twenty
operations writes a tensor of all tokens, and the first touch of every page of it is a fault. Here a few
thousand tokens at a time go through all operations in buffers that are used again, so that only the
results are written to fresh memory:

- ``forward``: two passes, keys and values, then queries (the sums over the keys must be complete before
  the first query); the depthwise convolution is added tile by tile, while the output is in the cache;
- ``backward``: written by hand. It keeps q, k, v and the sums over the keys, nothing of the feature
  map, and recomputes that per tile. The gradient of a row's norm needs sums over the row only;
- :mod:`.tiles`: at inference the projections are part of the tiles too: neither q nor k ever
  exists as a whole.

A positive factor per row of q cancels but for the eps of the normaliser, so q is never brought back to
its norm: with u the cube of any multiple of q, ``out = u·KV / (u·mean(K) + eps·|u|/|q|)``.

Tried and dropped: cubing without bringing the rows to one length saves one of some twelve passes, but
rows of 1e-7 or 1e6 leave the range of float32 in the sixth powers; dividing by the largest entry costs
one pass more. ``einsum`` for row sums is three times slower than a product and a sum.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .maps import as_image
from .reference import Inputs
from .tiles import (
    LENGTH,
    Activation,
    Buffers,
    Convolution,
    Focused,
    KeySums,
    Tile,
    attend,
    focus,
    merge_heads,
    split_heads,
    tiles,
)


def with_positions(x: Tensor, positions: Tensor | None, tile: Tile, out: Tensor) -> Tensor:
    """A tile of ``x (B, N, C)``: a view, or with ``positions`` their sum in ``out``."""
    rows = x[tile.batch, tile.tokens]
    if positions is None:
        return rows
    own = positions[tile.batch] if len(positions) > 1 else positions
    return torch.add(rows, own[:, tile.tokens], out=out)


def focused_tile(
    x: Tensor, positions: Tensor | None, activation: Activation, tile: Tile, buffers: Buffers
) -> Focused:
    """Focus a tile of the queries or keys ``x (B, N, C)``, with ``positions`` added."""
    a = buffers("a", *tile.size, x.shape[-1])
    rows = with_positions(x, positions, tile, out=a)
    return focus(activation(rows, out=a).flatten(0, 1), buffers)


def forward(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Focused linear attention with p = 3.

    Without a convolution, the keys may be fewer than the queries.

    Returns:
        The output ``(B, N, C)`` in v's dtype, and in float32 what the backward pass needs: the means of
        f(k)ᵀ v, ``(B, h, d, d)``, and of f(k), ``(B, h, d)``.
    """
    q, k, v, positions, scale, dwc_weight, dwc_bias = inputs.tensors
    num_heads, hw_shape, eps = inputs.num_heads, inputs.hw_shape, inputs.eps
    B, N, C = q.shape
    M = k.shape[1]
    activation, buffers = Activation.of(scale, eps, C, inputs.floor), Buffers()
    sums = KeySums(B, num_heads, C // num_heads)
    key_shape = hw_shape if M == N else (1, M)
    for tile in tiles(B, key_shape, C):
        keys = focused_tile(k, positions, activation, tile, buffers)
        sums.add(tile, keys, v[tile.batch, tile.tokens].float())
    sums.finish(M)

    out = torch.empty(B, N, C, dtype=v.dtype)
    convolution = None
    if dwc_weight is not None:
        convolution = Convolution(dwc_weight, dwc_bias, num_heads)
    for tile in tiles(B, hw_shape, C):
        queries = focused_tile(q, None, activation, tile, buffers)
        part = out[tile.batch, tile.tokens]  # Contiguous: rows of one map, or whole maps.
        into = part if part.dtype == torch.float32 else buffers("out", *part.shape)
        result = attend(queries, sums, tile, eps, into)
        if convolution is not None:
            result += convolution.of_rows(as_image(v[tile.batch], hw_shape), tile.rows)
        if into is not part:
            part.copy_(result)
    return out, sums.kv, sums.k


class _ScaleGradient:
    """Gradient of s, summed over queries and keys."""

    def __init__(self, scale: Tensor | None, activation: Activation) -> None:
        self._scale, self._activation = scale, activation
        # a = (ReLU(x) + eps)/softplus(s), so Σ da·a is the gradient of -log softplus(s).
        self._sum = None if scale is None else torch.zeros(scale.numel())

    def add(self, da: Tensor, rows: Focused, buffers: Buffers) -> None:
        if self._sum is not None:
            product = torch.mul(da, rows.scaled, out=buffers("product", *da.shape))
            self._sum += torch.mv(product.t(), rows.norm[:, 0] / LENGTH)

    def gradient(self) -> Tensor | None:
        if self._sum is None:
            return None
        scale = self._scale.detach().float()
        slope = torch.sigmoid(scale) * self._activation.inverse_scale.view_as(scale)
        return (-self._sum.view_as(scale) * slope).to(self._scale.dtype)


def _through_norm(rows: Focused, du: Tensor, d_cube_norm: Tensor, d_norm: Tensor, product: Tensor):
    """Gradient of a in place of ``du (n, C)``; the other two are ``(n, 1)``.

    With b = L a/|a| of the length L and u = b³ (elementwise), it follows from sums over the row: for any
    function of (u, |u|, |a|) with the partial derivatives g

        du  = g_u + g_|u| u/|u|
        da  = 3 L b² du/|a| + b/L (g_|a| - 3 (u·du)/|a|)
    """
    du.addcmul_(rows.cube, d_cube_norm / rows.cube_norm)
    radial = torch.mul(rows.cube, du, out=product).sum(dim=-1, keepdim=True).mul_(3)
    du.mul_(rows.scaled).mul_(rows.scaled).mul_(3 * LENGTH / rows.norm)
    return du.addcmul_(rows.scaled, (d_norm - radial / rows.norm) / LENGTH)


def _through_activation(da: Tensor, x: Tensor, activation: Activation, out: Tensor) -> None:
    """Gradient of the tokens ``x (b, n, C)`` from that of a, into ``out``."""
    if activation.inverse_scale is not None:
        da.mul_(activation.inverse_scale)
    da = da.view(x.shape)
    if out.dtype == x.dtype == da.dtype:
        torch.ops.aten.threshold_backward.grad_input(da, x, 0, grad_input=out)
    else:
        out.copy_(torch.ops.aten.threshold_backward(da, x.float(), 0))


class _QuerySide:
    """Gradients of the queries, and those of the means over the keys."""

    def __init__(self, kv: Tensor, k_mean: Tensor, eps: float) -> None:
        self.kv, self.k_mean, self.eps = kv, k_mean, eps
        self.d_kv, self.d_k_mean = torch.zeros_like(kv), torch.zeros_like(k_mean)

    def gradient(self, rows: Focused, grad: Tensor, tile: Tile, buffers: Buffers) -> Tensor:
        """Gradient of a ``(b*n, C)`` from that of the output, ``grad (b, n, C)``."""
        maps, tokens = tile.size
        heads, d = self.k_mean.shape[1:]
        kv, k_mean = self.kv[tile.batch].flatten(0, 1), self.k_mean[tile.batch].flatten(0, 1)
        ratio = self.eps / rows.norm
        cube = split_heads(rows.cube.view(maps, tokens, -1), heads)
        normaliser = torch.bmm(cube, k_mean.unsqueeze(-1)).unflatten(0, (maps, heads))
        normaliser += (rows.cube_norm * ratio).view(maps, 1, tokens, 1)
        inverse = normaliser.reciprocal_().flatten(0, 1)

        d_product = torch.mul(
            split_heads(grad, heads), inverse, out=buffers("d_product", maps * heads, tokens, d)
        )
        attended = torch.bmm(cube, kv, out=buffers("attended", maps * heads, tokens, d))
        d_normaliser = attended.mul_(d_product).sum(dim=-1, keepdim=True).mul_(inverse).neg_()
        transposed = cube.transpose(1, 2)
        self.d_kv[tile.batch].flatten(0, 1).baddbmm_(transposed, d_product)
        self.d_k_mean[tile.batch].flatten(0, 1).unsqueeze(-1).baddbmm_(transposed, d_normaliser)

        du = torch.bmm(d_product, kv.transpose(1, 2), out=buffers("attended", *d_product.shape))
        du.addcmul_(d_normaliser, k_mean.unsqueeze(1))
        if heads > 1:
            merged = buffers("du", maps, tokens, heads, d)
            du = merged.copy_(merge_heads(du, heads))
        total = d_normaliser.unflatten(0, (maps, heads)).sum(dim=1).flatten(0, 1)  # [b*n, 1]
        d_cube_norm = total * ratio
        return _through_norm(
            rows,
            du.view(maps * tokens, -1),
            d_cube_norm,
            -d_cube_norm * rows.cube_norm / rows.norm,
            buffers("product", maps * tokens, heads * d),
        )


def _key_gradients(
    rows: Focused, values: Tensor, d_kv: Tensor, d_k: Tensor, tile: Tile, buffers: Buffers
) -> tuple[Tensor, Tensor]:
    """Gradients of a ``(b*n, C)`` and of the values ``(b, n, C)`` of a tile."""
    maps, tokens = tile.size
    heads, d = d_k.shape[1:]
    d_kv, d_k = d_kv[tile.batch].flatten(0, 1), d_k[tile.batch].flatten(0, 1)
    shape = (maps * heads, tokens, d)
    factor = rows.norm / rows.cube_norm
    cube = split_heads(rows.cube.view(maps, tokens, -1), heads)
    d_values = torch.bmm(cube, d_kv, out=buffers("d_product", *shape))
    g = torch.baddbmm(
        d_k.unsqueeze(1),
        split_heads(values, heads),
        d_kv.transpose(1, 2),
        out=buffers("attended", *shape),
    )
    if heads > 1:
        g = buffers("du", maps, tokens, heads, d).copy_(merge_heads(g, heads))
        merged = buffers("d_values", maps, tokens, heads, d)
        d_values = merged.copy_(merge_heads(d_values, heads))
    d_values = d_values.view(maps, tokens, -1).mul_(factor.view(maps, tokens, 1))
    g = g.view(maps * tokens, -1)
    product = buffers("product", *g.shape)
    along = torch.mul(rows.cube, g, out=product).sum(dim=-1, keepdim=True).div_(rows.cube_norm)
    # The gradient of u is g·factor; that factor is taken out of the elementwise part.
    g.addcmul_(rows.cube, -along / rows.cube_norm)
    g.mul_(rows.scaled).mul_(rows.scaled).mul_(3 * LENGTH / rows.cube_norm)
    return g.addcmul_(rows.scaled, along / LENGTH), d_values


def backward(
    grad: Tensor, inputs: Inputs, kv: Tensor, k_mean: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of the tensors of the inputs, q to dwc_bias; None for those without ``needs``.

    Those of q, k and v are always computed. ``kv`` and ``k_mean`` are from the forward pass.
    """
    q, k, v, positions, scale, dwc_weight, dwc_bias = inputs.tensors
    num_heads, hw_shape, eps = inputs.num_heads, inputs.hw_shape, inputs.eps
    B, N, C = q.shape
    M = k.shape[1]
    activation, buffers = Activation.of(scale, eps, C), Buffers()
    scale_sum = _ScaleGradient(scale if needs[4] else None, activation)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))

    side = _QuerySide(kv, k_mean, eps)
    for tile in tiles(B, hw_shape, C):
        part = (tile.batch, tile.tokens)
        rows = focused_tile(q, None, activation, tile, buffers)
        da = side.gradient(rows, grad[part].float(), tile, buffers)
        scale_sum.add(da, rows, buffers)
        _through_activation(da, q[part], activation, dq[part])

    d_kv, d_k = side.d_kv.div_(M), side.d_k_mean.div_(M)
    flipped = None
    if dwc_weight is not None:
        flipped = Convolution(dwc_weight.flip(2, 3), None, num_heads)
    key_shape = hw_shape if M == N else (1, M)
    for tile in tiles(B, key_shape, C):
        part = (tile.batch, tile.tokens)
        rows = focused_tile(k, positions, activation, tile, buffers)
        da, d_values = _key_gradients(rows, v[part].float(), d_kv, d_k, tile, buffers)
        if flipped is not None:
            d_values += flipped.of_rows(as_image(grad[tile.batch], hw_shape), tile.rows)
        dv[part] = d_values
        scale_sum.add(da, rows, buffers)
        x = with_positions(k, positions, tile, out=buffers("product", *tile.size, C))
        _through_activation(da, x, activation, dk[part])

    d_positions = None
    if needs[3]:
        # A copy, for the results of an operator must not share memory.
        d_positions = dk.clone() if len(positions) > 1 else dk.sum(dim=0, keepdim=True)
        d_positions = d_positions.to(positions.dtype)
    d_weight, d_bias = None, None
    if needs[5] or needs[6]:
        # As one convolution of all channels, whose heads are summed up.
        shape = (C, *dwc_weight.shape[1:])
        v_image, grad_image = (as_image(x, hw_shape).float() for x in (v, grad))
        reach = shape[-1] // 2
        found = conv2d_weight(v_image, shape, grad_image, padding=reach, groups=C)
        d_weight = found.unflatten(0, (num_heads, -1)).sum(dim=0).to(dwc_weight.dtype)
    if dwc_bias is not None and (needs[5] or needs[6]):
        # The convolution's own sum of a long column is ten times less exact.
        d_bias = grad.float().sum(dim=(0, 1)).unflatten(0, (num_heads, -1)).sum(dim=0)
        d_bias = d_bias.to(dwc_bias.dtype)
    return dq, dk, dv, d_positions, scale_sum.gradient(), d_weight, d_bias
