"""From an attention layer and its input to the queries, keys and values of its windows."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import FocusedLinearAttention
from ...attention.grid import resize_grid
from ...attention.spatial_reduction import reduce_tokens
from ...attention.window import pad_to_multiple, window_partition
from ...backbones.softmax_attention import (
    CrossShapedAttention,
    ShiftedWindowAttention,
    SpatialReductionAttention,
)
from .windows import Convolution, Windows

PADDING = -1


def project(layer: nn.Module, x: Tensor, hw_shape: tuple[int, int]) -> list[Windows]:
    """The windows of an attention layer, in float64.

    Args:
        layer: one of :data:`ATTENTION_KINDS`.
        x: its input for one image, ``(N, C)`` with N = H*W tokens.
        hw_shape: ``(H, W)``.

    Returns:
        Windows that are alike in shape and heads in one entry. Together they hold every token of every
        head once as a query.

    Raises:
        ValueError: the layer is of no known kind, or x has not H*W tokens.
    """
    if x.dim() != 2 or x.shape[0] != hw_shape[0] * hw_shape[1]:
        raise ValueError(f"x {tuple(x.shape)} is not (H*W, C) for a map of {hw_shape}")
    for kind, windows_of in _PROJECTIONS.items():
        if isinstance(layer, kind):
            with torch.no_grad():
                return windows_of(deepcopy(layer).double().cpu(), x.double().cpu(), hw_shape)
    known = ", ".join(kind.__name__ for kind in _PROJECTIONS)
    raise ValueError(f"{type(layer).__name__} is no attention layer that can be analysed: {known}")


def _focused(layer: FocusedLinearAttention, x: Tensor, hw_shape: tuple[int, int]) -> list[Windows]:
    image, tokens = x.view(*hw_shape, -1), _token_map(hw_shape)
    size = layer.window_size
    window = hw_shape if size is None else (size, size)
    queries, tokens = _cut(_pad(image, window), window), _cut(_pad_tokens(tokens, window), window)
    reduced, key_shape = queries, window
    if layer.sr_ratio > 1:
        reduced, key_shape = reduce_tokens(queries, hw_shape, layer.sr_ratio, layer.sr, layer.norm)
    if layer.fused_qkv:
        q, k, v = layer.qkv(queries).chunk(3, dim=-1)
    else:
        q, (k, v) = layer.q(queries), layer.kv(reduced).chunk(2, dim=-1)
    positions = resize_grid(layer.positional_encoding, layer.grid_size, key_shape)
    heads = layer.num_heads
    # `dwc` has one kernel for the channels of a head, `lepe` one for each channel of the layer.
    shared = [] if layer.dwc is None else [_convolution(layer.dwc, 1, repeat=heads)]
    own = [] if layer.lepe is None else [_convolution(layer.lepe, heads)]
    return [
        Windows(
            heads=tuple(range(heads)),
            queries=q,
            keys=k + positions,
            values=v,
            tokens=tokens[..., 0],
            query_shape=window,
            key_shape=key_shape,
            feature_scale=F.softplus(layer.scale[0, 0]),
            convolutions=(*shared, *own),
            power=layer.focusing_factor,
        )
    ]


def _reduced_softmax(
    layer: SpatialReductionAttention, x: Tensor, hw_shape: tuple[int, int]
) -> list[Windows]:
    reduced, key_shape = x[None], hw_shape
    if layer.sr_ratio > 1:
        reduced, key_shape = reduce_tokens(x[None], hw_shape, layer.sr_ratio, layer.sr, layer.norm)
    k, v = layer.kv(reduced).chunk(2, dim=-1)
    tokens = _token_map(hw_shape).view(1, -1)
    heads = tuple(range(layer.num_heads))
    return [Windows(heads, layer.q(x[None]), k, v, tokens, tuple(hw_shape), tuple(key_shape))]


def _shifted_windows(
    layer: ShiftedWindowAttention, x: Tensor, hw_shape: tuple[int, int]
) -> list[Windows]:
    window = (layer.window_size, layer.window_size)
    shift = tuple(layer.shift_size if size > layer.window_size else 0 for size in hw_shape)
    image = _pad(x.view(*hw_shape, -1), window)
    tokens = _pad_tokens(_token_map(hw_shape), window)
    rows, cols = (torch.arange(size) for size in image.shape[:2])
    # Within a window, the tokens that were rolled around an edge are no neighbours of the others.
    sides = 2 * (rows < shift[0])[:, None].long() + (cols < shift[1])[None, :].long()
    image, tokens, sides = (
        _cut(torch.roll(t, shifts=(-shift[0], -shift[1]), dims=(0, 1)), window)
        for t in (image, tokens, sides[..., None])
    )
    q, k, v = layer.qkv(image).chunk(3, dim=-1)
    bias = layer.relative_position_bias_table[layer.bias_index].permute(2, 0, 1)[None]
    if any(shift):
        bias = bias.masked_fill((sides != sides.transpose(1, 2))[:, None], float("-inf"))
    heads = tuple(range(layer.num_heads))
    return [Windows(heads, q, k, v, tokens[..., 0], window, window, score_bias=bias)]


def _cross_shaped(
    layer: CrossShapedAttention, x: Tensor, hw_shape: tuple[int, int]
) -> list[Windows]:
    # [H, W, 3, C]
    qkv, tokens = layer.qkv(x).view(*hw_shape, 3, -1), _token_map(hw_shape)
    count = layer.heads_per_branch
    if layer.split_size is None:
        return [_stripes(layer, qkv, tokens, hw_shape, 0)]
    found = []
    # The first branch has vertical stripes, which lie side by side along the width.
    for branch, axis in ((0, 1), (1, 0)):
        channels = slice(branch * count, (branch + 1) * count)
        part = qkv.unflatten(-1, (2 * count, -1))[..., channels, :].flatten(-2)
        rest = hw_shape[axis] % layer.split_size
        whole = hw_shape[axis] - rest
        for start, length, width in ((0, whole, layer.split_size), (whole, rest, rest)):
            if length:
                window = (hw_shape[0], width) if axis else (width, hw_shape[1])
                cut = (t.narrow(axis, start, length) for t in (part, tokens))
                found.append(_stripes(layer, *cut, window, branch))
    return found


def _stripes(
    layer: CrossShapedAttention, qkv: Tensor, tokens: Tensor, window: tuple[int, int], branch: int
) -> Windows:
    count = layer.heads_per_branch
    q, k, v = (_cut(part, window) for part in qkv.unbind(2))
    return Windows(
        heads=tuple(range(branch * count, (branch + 1) * count)),
        queries=q,
        keys=k,
        values=v,
        tokens=_cut(tokens, window)[..., 0],
        query_shape=tuple(window),
        key_shape=tuple(window),
        convolutions=(_convolution(layer.lepe[branch], count),),
    )


def _convolution(convolution: nn.Conv2d, heads: int, repeat: int = 1) -> Convolution:
    kernels = convolution.weight[:, 0].unflatten(0, (heads, -1))
    bias = convolution.bias.unflatten(0, (heads, -1))
    return Convolution(kernels.repeat(repeat, 1, 1, 1), bias.repeat(repeat, 1))


def _token_map(hw_shape: tuple[int, int]) -> Tensor:
    """``(H, W, 1)``, each token's index."""
    return torch.arange(hw_shape[0] * hw_shape[1]).view(*hw_shape, 1)


def _pad(image: Tensor, window: tuple[int, int]) -> Tensor:
    return pad_to_multiple(image[None], window)[0]


def _pad_tokens(tokens: Tensor, window: tuple[int, int]) -> Tensor:
    return _pad(tokens - PADDING, window) + PADDING


def _cut(image: Tensor, window: tuple[int, int]) -> Tensor:
    """``(H, W, c)`` -> ``(G, n, c)``."""
    return window_partition(image[None], window)[0]


_PROJECTIONS: dict[type[nn.Module], Callable[..., list[Windows]]] = {
    FocusedLinearAttention: _focused,
    SpatialReductionAttention: _reduced_softmax,
    ShiftedWindowAttention: _shifted_windows,
    CrossShapedAttention: _cross_shaped,
}
ATTENTION_KINDS = tuple(_PROJECTIONS)
