"""The forward pass over tiles."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps import as_image
from .rows import Activation, Focused, focus
from .tiles import Buffers, Tile, merge_heads, split_heads, tiles


class KeySums:
    """What the queries need of all keys and values.

    Attributes:
        kv: mean of f(k)ᵀ v per head, ``(B, h, d, d)``.
        k: mean of f(k), ``(B, h, d)``.
    """

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
    """The depthwise convolution of V for the rows of a tile.

    Args:
        weight: ``(d, 1, K, K)``, shared by all heads.
        bias: ``(d,)`` or None.
        num_heads: h.
    """

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


def positioned_keys(k: Tensor, positions: Tensor | None, tile: Tile, out: Tensor) -> Tensor:
    """A tile of the keys ``k (B, M, C)``: a view, or with ``positions`` their sum in ``out``."""
    x = k[tile.batch, tile.tokens]
    if positions is None:
        return x
    own = positions[tile.batch] if len(positions) > 1 else positions
    return torch.add(x, own[:, tile.tokens], out=out)


def keys_of_tile(
    k: Tensor,
    positions: Tensor | None,
    activation: Activation,
    tile: Tile,
    buffers: Buffers,
) -> Focused:
    """Focus a tile of the keys ``k (B, M, C)``, with ``positions`` added."""
    a = buffers("a", *tile.size, k.shape[-1])
    x = positioned_keys(k, positions, tile, out=a)
    return focus(activation(x, out=a).flatten(0, 1), buffers)


def queries_of_tile(q: Tensor, activation: Activation, tile: Tile, buffers: Buffers) -> Focused:
    """Focus a tile of the queries ``q (B, N, C)``."""
    a = buffers("a", *tile.size, q.shape[-1])
    return focus(activation(q[tile.batch, tile.tokens], out=a).flatten(0, 1), buffers)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
    floor: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Focused linear attention with p = 3; arguments as for the reference.

    Without a convolution, the keys may be fewer than the queries.

    Returns:
        The output ``(B, N, C)`` in v's dtype, and in float32 what the backward pass needs: the means of
        f(k)ᵀ v, ``(B, h, d, d)``, and of f(k), ``(B, h, d)``.
    """
    B, N, C = q.shape
    M = k.shape[1]
    activation, buffers = Activation.of(scale, eps, C, floor), Buffers()
    sums = KeySums(B, num_heads, C // num_heads)
    key_shape = hw_shape if M == N else (1, M)
    for tile in tiles(B, key_shape, C):
        keys = keys_of_tile(k, positions, activation, tile, buffers)
        sums.add(tile, keys, v[tile.batch, tile.tokens].float())
    sums.finish(M)

    out = torch.empty(B, N, C, dtype=v.dtype)
    convolution = None
    if dwc_weight is not None:
        convolution = Convolution(dwc_weight, dwc_bias, num_heads)
    for tile in tiles(B, hw_shape, C):
        queries = queries_of_tile(q, activation, tile, buffers)
        part = out[tile.batch, tile.tokens]  # Contiguous: rows of one map, or whole maps.
        into = part if part.dtype == torch.float32 else buffers("out", *part.shape)
        result = attend(queries, sums, tile, eps, into)
        if convolution is not None:
            result += convolution.of_rows(as_image(v[tile.batch], hw_shape), tile.rows)
        if into is not part:
            part.copy_(result)
    return out, sums.kv, sums.k
