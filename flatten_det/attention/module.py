"""Focused Linear Attention as a layer: projections, learned grid, depthwise convolution."""

from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops, tiles
from .dispatch import TILED_LAYER, TRITON, Kind, choose, run
from .eager import is_plain, is_plain_depthwise, is_plain_eager
from .layer_norm import layer_norm
from .maps import (
    Padding,
    as_image,
    as_tokens,
    pad_to_multiple,
    resize_grid,
    resize_grid_to_each,
    strided_convolution,
    window_merge,
    window_partition,
)
from .reference import Inputs, values_as_image
from .tiles import FoldedProjections, Layer, Norm, fold_projections

EPS = 1e-6


class FocusedLinearAttention(nn.Module):
    """Focused linear attention over a feature map of any size (arXiv 2308.00442, Sec. 4).

    Parameter names are those of the official classification code, so its checkpoints load one to one.

    Args:
        dim: channels C.
        num_heads: heads; C must be a multiple of it.
        grid_size: ``(H, W)`` of this layer's map at pretraining. The learned ``positional_encoding``
            has one entry for each of its tokens (of its spatially reduced tokens if ``sr_ratio > 1``)
            and is resized to the map at hand. With ``window_size`` it is one window instead.
        window_size: attend within non-overlapping windows of this many tokens a side (Table 6);
            None: over the whole map.
        qkv_bias: bias of the query, key and value projections.
        fused_qkv: one projection ``qkv`` (Swin, CSwin) instead of ``q`` and ``kv`` (PVT).
        sr_ratio: reduce keys and values by a strided convolution and a LayerNorm (PVT).
        focusing_factor: the power p of Eq. 5.
        kernel_size: of the depthwise convolution of V; 0: none.
        lepe_kernel_size: of a second depthwise convolution of V with a kernel for every channel, CSwin's
            locally-enhanced positional encoding (arXiv 2107.00652, Sec. 3.3); 0: none.

    Raises:
        ValueError: if the arguments do not fit together.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: tuple[int, int],
        window_size: int | None = None,
        qkv_bias: bool = True,
        fused_qkv: bool = True,
        sr_ratio: int = 1,
        focusing_factor: float = 3,
        kernel_size: int = 5,
        lepe_kernel_size: int = 0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim={dim} is not a multiple of num_heads={num_heads}")
        for name, size in (("kernel_size", kernel_size), ("lepe_kernel_size", lepe_kernel_size)):
            if size and size % 2 == 0:
                raise ValueError(f"{name} must be odd, or 0 for no convolution; got {size}")
        if sr_ratio > 1 and (fused_qkv or window_size):
            raise ValueError(
                f"sr_ratio={sr_ratio} needs fused_qkv=False and window_size=None: reduced keys and "
                "values have a projection of their own and no windows"
            )
        self.num_heads = num_heads
        self.focusing_factor = focusing_factor
        self.window_size = window_size
        if window_size:
            grid_size = (window_size, window_size)
        self.grid_size = tuple(-(-size // sr_ratio) for size in grid_size)

        if fused_qkv:
            self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        else:
            self.q = nn.Linear(dim, dim, bias=qkv_bias)
            self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.fused_qkv = fused_qkv
        self.sr_ratio = sr_ratio
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(
            torch.zeros(1, self.grid_size[0] * self.grid_size[1], dim)
        )
        head_dim = dim // num_heads
        self.dwc = (
            nn.Conv2d(head_dim, head_dim, kernel_size, padding=kernel_size // 2, groups=head_dim)
            if kernel_size
            else None
        )
        self.lepe = (
            nn.Conv2d(dim, dim, lepe_kernel_size, padding=lepe_kernel_size // 2, groups=dim)
            if lepe_kernel_size
            else None
        )
        self.proj = nn.Linear(dim, dim)
        self.is_fused = False

    @property
    def takes_padding(self) -> bool:
        """Whether :meth:`forward` takes it: not with windows, reduced keys, or a second convolution."""
        return self.window_size is None and self.sr_ratio == 1 and self.lepe is None

    def fuse_for_inference(self) -> None:
        """Fold scale, eps and bias into the projections where no gradient is needed, until training mode.

        It is done in every call, which takes no time that could be measured, and knows no weights but the
        present ones. On a GPU, the kernels have these for free and nothing changes.
        """
        self.is_fused = True

    def unfuse(self) -> None:
        """Undo :meth:`fuse_for_inference`."""
        self.is_fused = False

    def train(self, mode: bool = True) -> "FocusedLinearAttention":
        if mode:
            self.unfuse()
        return super().train(mode)

    def _projections(self) -> list[nn.Module]:
        return [self.qkv] if self.fused_qkv else [self.q, self.kv]

    def _can_be_folded(self) -> bool:
        """Whether the projections may be read, and all of them or none have a bias."""
        parts = self._projections()
        is_readable = all(map(is_plain, parts, repeat(nn.Linear)))
        return is_readable and len({part.bias is None for part in parts}) == 1

    def _fold(self) -> FoldedProjections:
        parts = self._projections()
        weight = torch.cat([part.weight for part in parts])
        bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])
        return fold_projections(weight, bias, self.positional_encoding, self.scale, EPS)

    def _in_tiles(self) -> Layer:
        dwc, lepe = (
            (None, None) if c is None else (c.weight, c.bias) for c in (self.dwc, self.lepe)
        )
        proj = (self.proj.weight, self.proj.bias)
        return Layer(*self._fold(), *self.grid_size, *dwc, *lepe, *proj, self.num_heads, EPS)

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], padding: Padding | None = None
    ) -> Tensor:
        """``x (B, N, C)`` with N = H*W tokens of ``hw_shape = (H, W)`` -> ``(B, N, C)``.

        With ``padding``, and shares of a grid of ``grid_size`` in it, each map is computed as alone, and what
        the result has in the padding is of no use.

        Raises:
            ValueError: if there is padding, and the layer does not :attr:`takes_padding`.
        """
        if padding is not None and not self.takes_padding:
            raise ValueError("windows, sr_ratio > 1 and lepe_kernel_size take no padding")
        choice = self._choose(x)
        if choice == TILED_LAYER and padding is None:
            return ops.layer(x, *hw_shape, *self._in_tiles())
        if self.window_size is None:
            return self.proj(self._attend(x, hw_shape, choice, padding))
        B, N, C = x.shape
        window = (self.window_size, self.window_size)
        padded = pad_to_multiple(x.view(B, *hw_shape, C), window)
        windows = window_partition(padded, window).flatten(0, 1)  # [B*nW, w*w, C]
        windows = self._attend(windows, window, choice).unflatten(0, (B, -1))
        out = window_merge(windows, window, padded.shape[1:3])
        return self.proj(out[:, : hw_shape[0], : hw_shape[1]].reshape(B, N, C))

    def adds_in_tiles(self, x: Tensor, norm: nn.Module) -> bool:
        """Whether :meth:`add_in_tiles` can compute ``x + self(norm(x))``."""
        if not (is_plain(norm, nn.LayerNorm) and is_plain_eager()):
            return False
        weight, bias = norm.weight, norm.bias
        if weight is None or bias is None or weight.shape != x.shape[-1:]:
            return False
        return weight.dtype == torch.float32 and self._choose(x) == TILED_LAYER

    def add_in_tiles(
        self, x: Tensor, hw_shape: tuple[int, int], norm: nn.LayerNorm, inplace: bool
    ) -> Tensor:
        """``x + self(norm(x), hw_shape)``, without a tensor for what norm and the layer return.

        For blocks that :meth:`adds_in_tiles`. ``inplace``: overwrite x, which must be contiguous.
        """
        own = Norm(norm.weight, norm.bias, norm.eps)
        return tiles.forward(x, self._in_tiles(), hw_shape, own, inplace)

    def _choose(self, x: Tensor) -> str:
        device, dtype = x.device, x.dtype
        kind = device.type
        # What the projections return. Tensors without values know of no autocast.
        if kind != "meta" and torch.is_autocast_enabled(kind) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        kind = Kind(
            device,
            (dtype, dtype, dtype),
            self.positional_encoding.shape[-1],
            self.num_heads,
            self.focusing_factor,
            has_fewer_keys=self.sr_ratio > 1,
            is_empty=x.numel() == 0,
        )
        return choose(kind, is_layer=self._could_be_one_operator(x, dtype))

    def _attend(
        self, x: Tensor, hw_shape: tuple[int, int], choice: str, padding: Padding | None = None
    ) -> Tensor:
        """Attention and convolutions of V, without the output projection."""
        # The Triton kernels scale what they have read anyway: nothing to gain from folding.
        uses_folded = self.is_fused and not torch.is_grad_enabled() and choice != TRITON
        folded = self._fold() if uses_folded and self._can_be_folded() else None
        scale, floor, grid = self.scale, None, self.positional_encoding
        if folded is not None:
            scale, floor, grid = None, folded.floor, folded.positions * folded.position_scale
        reduced, key_shape = x, hw_shape
        if self.sr_ratio > 1:
            reduced, key_shape = reduce_tokens(x, hw_shape, self.sr_ratio, self.sr, self.norm)
        q, k, v = self._project(x, reduced, folded)
        if padding is None:
            sizes, positions = None, resize_grid(grid, self.grid_size, key_shape)
        else:
            sizes, positions = padding.sizes, resize_grid_to_each(grid, padding)
        dwc = self.dwc
        is_read = dwc is not None and is_plain_depthwise(dwc)
        weight, bias = (dwc.weight, dwc.bias) if is_read else (None, None)
        tensors = (q, k, v, positions, scale, weight, bias)
        settings = (self.num_heads, hw_shape, self.focusing_factor, EPS, floor, sizes)
        out = run(choice, Inputs(*tensors, *settings))
        if dwc is not None and not is_read:
            if padding is not None:
                v = v.masked_fill(padding.mask, 0)
            out = out + self._call_dwc(v, hw_shape)
        if self.lepe is not None:
            out = out + as_tokens(self.lepe(as_image(v, hw_shape)))
        return out

    def _call_dwc(self, v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """The depthwise convolution of ``v (B, M, C)`` as its module computes it, ``(B, N, C)``."""
        B, heads = v.shape[0], self.num_heads
        image = values_as_image(v, hw_shape).unflatten(1, (heads, -1))  # [B, h, d, H, W]
        return as_tokens(self.dwc(image.flatten(0, 1)).unflatten(0, (B, heads)).flatten(1, 2))

    def _project(
        self, x: Tensor, reduced: Tensor, folded: FoldedProjections | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q of x; k and v of x or of its reduced tokens."""
        C = x.shape[-1]
        if folded is not None and reduced is x:
            return F.linear(x, folded.weight, folded.bias).chunk(3, dim=-1)
        if folded is not None:
            q = F.linear(x, folded.weight[:C], folded.bias[:C])
            return q, *F.linear(reduced, folded.weight[C:], folded.bias[C:]).chunk(2, dim=-1)
        if self.fused_qkv:
            return self.qkv(x).chunk(3, dim=-1)
        return self.q(x), *self.kv(reduced).chunk(2, dim=-1)

    def _could_be_one_operator(self, x: Tensor, dtype: torch.dtype) -> bool:
        """Whether the whole layer can run tile by tile: on the CPU, without gradients, in float32."""
        is_exact = x.dtype == dtype == torch.float32
        if x.device.type != "cpu" or torch.is_grad_enabled() or not is_exact:
            return False
        # What is looked at becomes part of a trace.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if self.window_size is not None or self.sr_ratio > 1:
            return False
        projections = self._projections()
        linear = (*projections, self.proj)
        convolutions = [part for part in (self.dwc, self.lepe) if part is not None]
        return (
            all(map(is_plain, linear, repeat(nn.Linear)))
            and all(map(is_plain_depthwise, convolutions))
            and len({part.bias is None for part in projections}) == 1
            and self.proj.bias is not None
            and all(part.weight.dtype == torch.float32 for part in linear)
        )


def reduce_tokens(
    x: Tensor, hw_shape: tuple[int, int], ratio: int, conv: nn.Module, norm: nn.Module
) -> tuple[Tensor, tuple[int, int]]:
    """PVT's spatial reduction: a strided convolution merges each ``R x R`` patch of tokens, then a norm.

    ``(B, H*W, C)`` -> ``(B, ceil(H/R)*ceil(W/R), C)`` and their map size. Maps that R does not divide are
    padded with zeros at the bottom and right.
    """
    B, _, C = x.shape
    image = pad_to_multiple(x.view(B, *hw_shape, C), (ratio, ratio)).permute(0, 3, 1, 2)
    image = strided_convolution(conv, image)
    return layer_norm(as_tokens(image), norm, for_product=True), tuple(image.shape[2:])
