"""The attention layers of a backbone, cut into windows, and the queries, keys and values that they see."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import FocusedLinearAttention
from ...attention.maps import pad_to_multiple, reduce_tokens, resize_grid, window_partition
from ...backbones.softmax_attention import (
    CrossShapedAttention,
    ShiftedWindowAttention,
    SpatialReductionAttention,
)
from ...errors import UserError

PADDING = -1  # in place of a token's index


@dataclass(frozen=True)
class WindowConvolution:
    """A depthwise convolution of the values, added to what the attention gives.

    Attributes:
        kernels: ``(h, d, K, K)`` for each head and channel; odd K, zero padding.
        bias: ``(h, d)``.
    """

    kernels: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Windows:
    """G windows of the same shape, in each of which every query may attend to every key.

    Attention over the whole map is one window. c channels are those of the h heads here, d = c / h.

    Attributes:
        heads: the layer's numbers of these heads, which say where in its channels they stand.
        queries: ``(G, n, c)``, before any scale, softmax or feature map.
        keys: ``(G, m, c)``, likewise, with learned positions added; m < n where they are reduced.
        values: ``(G, m, c)``.
        tokens: ``(G, n)``, the index of each query in the map's row-major tokens; -1: padding.
        query_shape: ``(height, width)`` of a window, n = height * width.
        key_shape: the same for keys.
        feature_scale: ``(c,)``, what :math:`softplus(s)` of the focused map divides by; None: nothing.
        score_bias: ``(G or 1, h, n, m)``, added to the scores of softmax attention; -inf: no attention.
        convolutions: of the values.
        power: p, where the layer is linear attention; None: it is softmax attention.
    """

    heads: tuple[int, ...]
    queries: Tensor
    keys: Tensor
    values: Tensor
    tokens: Tensor
    query_shape: tuple[int, int]
    key_shape: tuple[int, int]
    feature_scale: Tensor | None = None
    score_bias: Tensor | None = None
    convolutions: tuple[WindowConvolution, ...] = ()
    power: float | None = None

    @property
    def head_dim(self) -> int:
        """d, the channels of a head."""
        return self.queries.shape[-1] // len(self.heads)

    def of_head(self, x: Tensor, window: int, position: int) -> Tensor:
        """``(G, t, c)`` -> ``(t, d)`` of a window and of the head at a position in ``heads``."""
        d = self.head_dim
        return x[window, :, position * d : (position + 1) * d]


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


def _convolution(convolution: nn.Conv2d, heads: int, repeat: int = 1) -> WindowConvolution:
    kernels = convolution.weight[:, 0].unflatten(0, (heads, -1))
    bias = convolution.bias.unflatten(0, (heads, -1))
    return WindowConvolution(kernels.repeat(repeat, 1, 1, 1), bias.repeat(repeat, 1))


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


@dataclass(frozen=True)
class AttentionLayer:
    """An attention layer of a model.

    Attributes:
        name: ``STAGE.BLOCK``, both from 1.
        path: the module's name in the model.
        module: the layer.
        is_last: of its stage.
    """

    name: str
    path: str
    module: nn.Module
    is_last: bool = False


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """All layers that can be analysed; those whose blocks are in one list are a stage.

    Raises:
        UserError: there is none.
    """
    stages: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, ATTENTION_KINDS):
            blocks = path.rsplit(".", 2)[0]  # "block1" of "block1.0.attn"
            stages.setdefault(blocks, []).append((path, module))
    if not stages:
        known = ", ".join(kind.__name__ for kind in ATTENTION_KINDS)
        raise UserError(f"{type(model).__name__} has no attention to analyse: looked for {known}")
    return [
        AttentionLayer(f"{stage}.{block}", path, module, block == len(blocks))
        for stage, blocks in enumerate(stages.values(), 1)
        for block, (path, module) in enumerate(blocks, 1)
    ]


def choose_layers(
    layers: Sequence[AttentionLayer], wanted: Sequence[str] | None
) -> list[AttentionLayer]:
    """The layers asked for, in the order of the model.

    Args:
        layers: of the model.
        wanted: ``STAGE.BLOCK`` or ``STAGE`` for all its blocks, or ``all``; None: the last block of each
            stage.

    Raises:
        UserError: there is no such layer.
    """
    if wanted is None:
        return [layer for layer in layers if layer.is_last]
    for name in wanted:
        if not any(_is_meant(layer, name) for layer in layers):
            names = " ".join(layer.name for layer in layers)
            raise UserError(f"--layers {name}: no such stage or block; there are {names}")
    return [layer for layer in layers if any(_is_meant(layer, name) for name in wanted)]


def _is_meant(layer: AttentionLayer, name: str) -> bool:
    return name in ("all", layer.name, layer.name.split(".")[0])


@dataclass(frozen=True)
class LayerCall:
    """A call of an attention layer for one image.

    Attributes:
        layer: that was called.
        tokens: its input ``(N, C)``.
        hw_shape: ``(H, W)`` with N = H*W.
        output: what the layer hands to its output projection, ``(N, C)``.
    """

    layer: AttentionLayer
    tokens: Tensor
    hw_shape: tuple[int, int]
    output: Tensor


def capture(
    model: nn.Module, layers: Iterable[AttentionLayer], image: Tensor
) -> Sequence[LayerCall]:
    """Run a model on one image and keep what the layers were given.

    Args:
        model: a backbone in evaluation mode.
        layers: of this model.
        image: ``(1, channels, height, width)``.

    Returns:
        The calls on the CPU, in the order of the layers.

    Raises:
        ValueError: there is more than one image, or a layer was not called exactly once.
    """
    if image.shape[0] != 1:
        raise ValueError(f"one image at a time, got {image.shape[0]}")
    layers = list(layers)
    inputs: dict[str, list[tuple[Tensor, tuple[int, int]]]] = {layer.path: [] for layer in layers}
    outputs: dict[str, list[Tensor]] = {layer.path: [] for layer in layers}
    handles = []
    for layer in layers:

        def keep_input(_: nn.Module, args: tuple, path: str = layer.path) -> None:
            tokens, hw_shape = args
            # A copy: what comes after may compute in place.
            inputs[path].append((tokens[0].detach().cpu().clone(), tuple(hw_shape)))

        def keep_output(_: nn.Module, args: tuple, path: str = layer.path) -> None:
            outputs[path].append(args[0].detach().flatten(0, -2).cpu().clone())

        handles.append(layer.module.register_forward_pre_hook(keep_input))
        handles.append(layer.module.proj.register_forward_pre_hook(keep_output))
    try:
        with torch.no_grad():
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    calls = []
    for layer in layers:
        if len(inputs[layer.path]) != 1:
            raise ValueError(f"{layer.path} was called {len(inputs[layer.path])} times, not once")
        tokens, hw_shape = inputs[layer.path][0]
        calls.append(LayerCall(layer, tokens, hw_shape, outputs[layer.path][0]))
    return calls
