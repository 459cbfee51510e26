"""The softmax attentions of PVT, Swin and CSwin, for baselines and for later stages."""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.eager import is_plain_eager, keeps_tensors
from ..attention.maps import (
    Padding,
    are_numbers,
    as_image,
    as_tokens,
    pad_to_multiple,
    window_merge,
    window_partition,
)
from ..attention.module import reduce_tokens

# Elements of a mask that is kept; the work that makes a larger one is not noticed beside its use.
_LARGEST = 1 << 22


class SpatialReductionAttention(nn.Module):
    """PVT's attention: keys and values from a map reduced ``sr_ratio`` times (arXiv 2102.12122, Eq. 1-3).

    With 1 it is that of a plain ViT.
    """

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], padding: Padding | None = None
    ) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``.

        With ``padding``, each map is computed as alone, and what the result has in the padding is of no use.
        """
        q = self.q(x)
        is_key = None if padding is None else ~padding.mask
        if self.sr_ratio > 1:
            if padding is not None:
                x = x.masked_fill(padding.mask, 0)
                # What has a valid token at its top left has one at all.
                is_key = is_key.unflatten(1, hw_shape)[:, :: self.sr_ratio, :: self.sr_ratio]
                is_key = is_key.flatten(1, 2)
            x, _ = reduce_tokens(x, hw_shape, self.sr_ratio, self.sr, self.norm)
        k, v = self.kv(x).chunk(2, dim=-1)
        heads = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if is_key is None else is_key[:, None, None, :, 0]  # [B, 1, 1, M]
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask)
        return self.proj(out.transpose(1, 2).flatten(2))


class ShiftedWindowAttention(nn.Module):
    """Swin's attention in (shifted) windows with a relative position bias (arXiv 2103.14030, Sec. 3.2).

    The map is padded with zeros to whole windows of ``window_size`` tokens a side, and rolled by
    ``shift_size`` before it is cut, but along axes on which it fits into one window.
    """

    def __init__(
        self, dim: int, num_heads: int, window_size: int, shift_size: int, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift_size = shift_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("bias_index", _relative_position_index(window_size), persistent=False)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``."""
        B, N, C = x.shape
        window = (self.window_size, self.window_size)
        shift = self._shift(hw_shape, x.device)
        x = pad_to_multiple(x.view(B, *hw_shape, C), window)
        padded_shape = x.shape[1:3]
        if shift:
            x = _roll(x, (-shift[0], -shift[1]))
        windows = window_partition(x, window)  # [B, nW, n, C]

        qkv = self.qkv(windows).flatten(0, 1).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B*nW, h, n, d], views
        bias = self.relative_position_bias_table[self.bias_index].permute(2, 0, 1)  # [h, n, n]
        bias = bias.to(q.dtype).unsqueeze(0)
        if shift:
            separate = shift_mask(padded_shape, self.window_size, shift, x.device)
            bias = bias.masked_fill(separate[:, None], float("-inf")).repeat(B, 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

        out = out.transpose(1, 2)
        if not are_numbers(hw_shape):
            # An exporter may decompose the attention into operations that leave another layout than it has.
            out = out.clone(memory_format=torch.contiguous_format)
        out = out.reshape(windows.shape)
        out = window_merge(out, window, padded_shape)
        if shift:
            out = _roll(out, shift)
        return self.proj(out[:, : hw_shape[0], : hw_shape[1]].reshape(B, N, C))

    def _shift(
        self, hw_shape: tuple[int, int], device: torch.device
    ) -> tuple[int | Tensor, int | Tensor] | None:
        """Of the windows along each axis of the map; None: along neither."""
        if not self.shift_size:
            return None
        if are_numbers(hw_shape):
            shift = tuple(self.shift_size if size > self.window_size else 0 for size in hw_shape)
            return shift if any(shift) else None
        lasts = (torch.arange(size, device=device)[-1] for size in hw_shape)
        return tuple((last >= self.window_size) * self.shift_size for last in lasts)


def _roll(x: Tensor, shift: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """``torch.roll`` of the map ``x (B, H, W, C)`` by less than its sides, which a graph may compute."""
    if are_numbers(shift):
        return torch.roll(x, shifts=shift, dims=(1, 2))
    for dim, own in enumerate(shift, 1):
        size = x.shape[dim]
        # A remainder by a symbol is unknown to ONNX's exporter.
        index = torch.arange(size, device=x.device) - own
        index = torch.where(index < 0, index + size, index)
        x = x.index_select(dim, torch.where(index < size, index, index - size))
    return x


def _relative_position_index(window_size: int) -> Tensor:
    """Row of the bias table for each (query, key) pair of a window: ``(n, n)``, n = window_size**2."""
    ticks = torch.arange(window_size)
    y, x = (t.flatten() for t in torch.meshgrid(ticks, ticks, indexing="ij"))
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return dy * (2 * window_size - 1) + dx


def shift_mask(
    padded_shape: tuple[int, int],
    window_size: int,
    shift: tuple[int | Tensor, int | Tensor],
    device: torch.device,
) -> Tensor:
    """True for the pairs of a window that were not neighbours before the roll: ``(nW, n, n)``."""
    arguments = (padded_shape, window_size, shift, device)
    if not (are_numbers(padded_shape) and is_plain_eager() and keeps_tensors()):
        return _make_mask(*arguments)
    is_small = math.prod(padded_shape) * window_size**2 <= _LARGEST
    return (_kept_mask if is_small else _make_mask)(*arguments)


@lru_cache(maxsize=16)  # Sizes in turn, as evaluation on images of a few shapes has them.
def _kept_mask(*arguments: Any) -> Tensor:
    # Not as an inference tensor, which later training could not use.
    with torch.inference_mode(False):
        return _make_mask(*arguments)


def _make_mask(
    padded_shape: tuple[int, int],
    window_size: int,
    shift: tuple[int | Tensor, int | Tensor],
    device: torch.device,
) -> Tensor:
    def region(size: int, axis_shift: int | Tensor) -> Tensor:
        index = torch.arange(size, device=device)
        if isinstance(axis_shift, int) and not axis_shift:
            return torch.zeros_like(index)
        return (index >= size - window_size).long() + (index >= size - axis_shift).long()

    rows, cols = (region(size, s) for size, s in zip(padded_shape, shift, strict=True))
    regions = (3 * rows[:, None] + cols[None, :])[None, :, :, None]
    regions = window_partition(regions, (window_size, window_size))[0, :, :, 0]  # [nW, n]
    return regions[:, :, None] != regions[:, None, :]


class CrossShapedAttention(nn.Module):
    """Half of the heads attend in vertical stripes, half in horizontal ones (arXiv 2107.00652, Sec. 3.2).

    Stripes are ``split_size`` tokens wide; None: one branch over the whole map (last stage). The last stripe
    is as wide as what is left, which equals padding it to full width and masking the padding. To the values
    goes the locally-enhanced positional encoding, a 3x3 depthwise convolution within each stripe.
    """

    def __init__(
        self, dim: int, num_heads: int, split_size: int | None, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        branches = 1 if split_size is None else 2
        if num_heads % branches:
            raise ValueError(f"two branches cannot share {num_heads} heads equally")
        self.heads_per_branch = num_heads // branches
        self.split_size = split_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        width = dim // branches
        self.lepe = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(branches)
        )

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``."""
        B, N, C = x.shape
        H, W = hw_shape
        qkv = self.qkv(x).view(B, H, W, 3, C)
        if self.split_size is None:
            out = self._attend(qkv, hw_shape, self.lepe[0])
        else:
            vertical, horizontal = qkv.chunk(2, dim=-1)
            halves = zip((vertical, horizontal), (2, 1), self.lepe, strict=True)
            out = torch.cat([self._in_stripes(*half) for half in halves], dim=-1)
        return self.proj(out.reshape(B, N, C))

    def _in_stripes(self, qkv: Tensor, axis: int, lepe: nn.Conv2d) -> Tensor:
        """Cut ``(B, H, W, 3, c)`` along an axis of the map and attend within each stripe."""
        size = qkv.shape[axis]
        if not are_numbers((size,)):
            return self._in_padded_stripes(qkv, axis, lepe)
        rest = size % self.split_size
        outs = []
        for start, length, width in ((0, size - rest, self.split_size), (size - rest, rest, rest)):
            if length:
                part = qkv.narrow(axis, start, length)
                window = (part.shape[1], width) if axis == 2 else (width, part.shape[2])
                outs.append(self._attend(part, window, lepe))
        return torch.cat(outs, dim=axis)

    def _in_padded_stripes(self, qkv: Tensor, axis: int, lepe: nn.Conv2d) -> Tensor:
        """The same without asking whether the stripes divide the map: for graphs of any size."""
        size, split = qkv.shape[axis], self.split_size
        padded = pad_to_multiple(qkv, (1, split) if axis == 2 else (split, 1))
        H, W, window = *padded.shape[1:3], list(padded.shape[1:3])
        window[axis - 1] = split
        ticks = torch.arange(padded.shape[axis], device=qkv.device)
        is_key = (ticks < size).unsqueeze(2 - axis).expand(H, W)[None, ..., None]
        is_key = window_partition(is_key, window)[0, :, None, None, :, 0]  # [nW, 1, 1, n]
        out = self._attend(padded, window, lepe, is_key)
        return out.narrow(axis, 0, size)

    def _attend(
        self,
        qkv: Tensor,
        window: tuple[int, int],
        lepe: nn.Conv2d,
        is_key: Tensor | None = None,
    ) -> Tensor:
        """Attention within windows that divide the map: ``(B, H, W, 3, c)`` -> ``(B, H, W, c)``.

        ``is_key (nW, 1, 1, n)``: the tokens of each window that are attended to; None: all.
        """
        B, H, W = qkv.shape[:3]
        q, k, v = window_partition(qkv, window).flatten(0, 1).unbind(2)  # [B*nW, n, c] each
        heads = (t.unflatten(-1, (self.heads_per_branch, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if is_key is None else is_key.repeat(B, 1, 1, 1)
        out = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
        image = as_image(v, window)
        out = out + as_tokens(lepe(image))
        return window_merge(out.unflatten(0, (B, -1)), window, (H, W))
