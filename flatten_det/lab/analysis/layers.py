"""The attention layers of a backbone, cut into windows, and the queries, keys and values that they see."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...attention import FocusedLinearAttention
from ...attention.maps import pad_to_multiple, resize_grid, window_partition
from ...attention.module import reduce_tokens
from ...backbones.softmax_attention import (
    CrossShapedAttention,
    ShiftedWindowAttention,
    SpatialReductionAttention,
)
from ...errors import UserError

PADDING = -1  # in place of a token's index


@dataclass(frozen=True)
class Windows:
    """G windows of the same shape, in each of which every query may attend to every key.

    Attention over the whole map is one window. c channels are those of the h heads here, d = c / h.
    """

    heads: tuple[int, ...]  # the layer's numbers of these heads: where in its channels they stand
    queries: Tensor  # (G, n, c), before any scale, softmax or feature map
    keys: Tensor  # (G, m, c), likewise, with learned positions added; m < n where they are reduced
    values: Tensor  # (G, m, c)
    tokens: Tensor  # (G, n), the index of each query in the map's row-major tokens; -1: padding
    query_shape: tuple[int, int]  # (height, width) of a window, n = height * width
    key_shape: tuple[int, int]  # the same for keys
    feature_scale: Tensor | None = None  # (c,), what softplus(s) of the focused map divides by
    # (G or 1, h, n, m), added to the scores of softmax attention; -inf: no attention.
    score_bias: Tensor | None = None
    # Depthwise, of the values, added to what the attention gives, with zero padding: kernels (h, d, K, K)
    # for each head and channel with odd K, and biases (h, d).
    convolution: tuple[Tensor, Tensor] | None = None
    power: float | None = None  # p of linear attention; None: it is softmax attention

    @property
    def head_dim(self) -> int:
        """d, the channels of a head."""
        return self.queries.shape[-1] // len(self.heads)

    def of_head(self, x: Tensor, window: int, position: int) -> Tensor:
        """``(G, t, c)`` -> ``(t, d)`` of a window and of the head at a position in ``heads``."""
        d = self.head_dim
        return x[window, :, position * d : (position + 1) * d]


def project(layer: nn.Module, x: Tensor, hw_shape: tuple[int, int]) -> list[Windows]:
    """The windows of one of :data:`ATTENTION_KINDS` for the tokens ``x (H*W, C)`` of one image, in float64.

    Windows that are alike in shape and heads are one entry. Together they hold every token of every head
    once as a query.

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
    heads = tuple(range(layer.num_heads))
    scale = F.softplus(layer.scale[0, 0])
    convolution = _convolution([layer.dwc, layer.lepe], layer.num_heads, q.shape[-1])
    windows = Windows(heads, q, k + positions, v, tokens[..., 0], window, key_shape, scale)
    return [replace(windows, convolution=convolution, power=layer.focusing_factor)]


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
    count, window = layer.heads_per_branch, tuple(window)
    heads = tuple(range(branch * count, (branch + 1) * count))
    q, k, v = (_cut(part, window) for part in qkv.unbind(2))
    convolution = _convolution([layer.lepe[branch]], count, q.shape[-1])
    tokens = _cut(tokens, window)[..., 0]
    return Windows(heads, q, k, v, tokens, window, window, convolution=convolution)


def _convolution(
    layers: Iterable[nn.Conv2d | None], heads: int, channels: int
) -> tuple[Tensor, Tensor] | None:
    """The sum of depthwise convolutions, each of all channels, or of one head's for every head."""
    found = [layer for layer in layers if layer is not None]
    if not found:
        return None
    d, size = channels // heads, max(layer.kernel_size[0] for layer in found)
    kernels = [layer.weight.view(-1, d, *layer.kernel_size) for layer in found]
    # Smaller kernels have the same centre.
    kernels = sum(F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4) for kernel in kernels)
    bias = sum(layer.bias.view(-1, d) for layer in found)
    return kernels.expand(heads, -1, -1, -1), bias.expand(heads, -1)


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
    """An attention layer of a model."""

    name: str  # STAGE.BLOCK, both from 1
    path: str  # the module's name in the model
    module: nn.Module
    is_last: bool = False  # of its stage

    @property
    def heads(self) -> int:
        """How many it has."""
        if hasattr(self.module, "num_heads"):
            return self.module.num_heads
        return self.module.heads_per_branch * len(self.module.lepe)


def attention_layers(model: nn.Module) -> list[AttentionLayer]:
    """All layers that can be analysed, or UserError; those whose blocks are in one list are a stage."""
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

    ``wanted`` are ``STAGE.BLOCK``, ``STAGE`` for all its blocks, or ``all``; None: the last block of each
    stage. Raises UserError for a layer that there is not.
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
    """A call of an attention layer for one image."""

    layer: AttentionLayer
    tokens: Tensor  # its input (N, C)
    hw_shape: tuple[int, int]  # (H, W) with N = H*W
    output: Tensor  # what the layer hands to its output projection, (N, C)


def capture(
    model: nn.Module, layers: Iterable[AttentionLayer], image: Tensor
) -> Sequence[LayerCall]:
    """Run a backbone in evaluation mode on ``(1, channels, height, width)``; the calls, in order, on the CPU.

    Raises:
        ValueError: there is more than one image, or a layer was not called exactly once.
    """
    if image.shape[0] != 1:
        raise ValueError(f"one image at a time, got {image.shape[0]}")
    return calls_during(lambda: model(image), layers)


def calls_during(run: Callable[[], Any], layers: Iterable[AttentionLayer]) -> Sequence[LayerCall]:
    """The layers' calls while something runs their model for one image, in order, on the CPU.

    Raises:
        ValueError: a layer was not called exactly once, or for more than one image.
    """
    layers = list(layers)
    seen: dict[str, list[tuple]] = {layer.path: [] for layer in layers}

    # Copies: what comes after may compute in place.
    def keep_input(path: str, module: nn.Module, args: tuple) -> None:
        tokens, hw_shape = args
        if len(tokens) != 1:
            raise ValueError(f"one image at a time, got {len(tokens)}")
        seen[path].append((tokens[0].detach().cpu().clone(), tuple(hw_shape)))

    def keep_output(path: str, module: nn.Module, args: tuple) -> None:
        seen[path][-1] += (args[0].detach().flatten(0, -2).cpu().clone(),)

    with ExitStack() as hooks, torch.no_grad():
        for layer in layers:
            for module, keep in ((layer.module, keep_input), (layer.module.proj, keep_output)):
                hook = partial(keep, layer.path)
                hooks.enter_context(module.register_forward_pre_hook(hook))
        run()
    for path, calls in seen.items():
        if len(calls) != 1:
            raise ValueError(f"{path} was called {len(calls)} times, not once")
    return [LayerCall(layer, *seen[layer.path][0]) for layer in layers]
