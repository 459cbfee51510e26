"""Focused Linear Attention as an equation (Han et al., ICCV 2023, arXiv 2308.00442, Sec. 4).

This is the plain version that every faster one is tested against. It computes in float32 (float64 for
float64 inputs) whatever the inputs are, because the cubes leave the range of float16.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .eager import without_autocast
from .maps import as_tokens


class Inputs(NamedTuple):
    """What focused linear attention is computed from.

    Attributes:
        q: queries ``(B, N, C)``, N = H*W tokens in row-major order.
        k, v: keys and values ``(B, M, C)``; M < N where they are spatially reduced.
        positions: added to the keys, broadcastable to ``(B, M, C)``.
        scale: per-channel parameter s of :func:`feature_map`, broadcastable to ``(B, N, C)``.
        dwc_weight: ``(d, 1, K, K)``, the depthwise convolution, shared by all heads. None: no convolution.
        dwc_bias: ``(d,)``.
        num_heads: h; the head dimension is d = C / h.
        hw_shape: ``(H, W)`` of the map of the queries.
        focusing_factor: p in Eq. 5.
        eps: added after the ReLU and to the normaliser.
        floor: ``(C,)``, in place of scale and of the eps after the ReLU; see :func:`feature_map`.
        sizes: ``(B, 2)`` int32, height and width of each map without its padding, which is to the right of
            it and below, and has no part in the result; the result is zero there. None: there is no
            padding. The equation and the tiles on the CPU take none.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    positions: Tensor | None
    scale: Tensor | None
    dwc_weight: Tensor | None
    dwc_bias: Tensor | None
    num_heads: int
    hw_shape: tuple[int, int]
    focusing_factor: float = 3
    eps: float = 1e-6
    floor: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """Those that may have gradients, q to dwc_bias."""
        return self[:7]

    def with_tensors(self, tensors: Iterable[Tensor | None]) -> "Inputs":
        """Others in the place of :attr:`tensors`."""
        return Inputs(*tensors, *self[7:])


def focused_map(x: Tensor, focusing_factor: float = 3) -> Tensor:
    r"""The focused function :math:`f_p(x) = \|x\| \, x^p / \|x^p\|` of Eq. 5, for ``x (..., C)`` >= 0.

    It keeps the norm of every row, over C, and turns its direction towards the largest entries. Zero rows
    stay zero.
    """
    tiny = torch.finfo(x.dtype).tiny
    # f_p(c x) = c f_p(x), so rows may be scaled to a largest entry of 1 first: no power of a row
    # underflows to 0/0 or overflows. The result does not depend on the scale, hence detach.
    largest = x.detach().amax(dim=-1, keepdim=True).clamp_min(tiny)
    powered = (x / largest) ** focusing_factor
    norm = torch.linalg.vector_norm
    return (
        norm(x, dim=-1, keepdim=True)
        * powered
        / norm(powered, dim=-1, keepdim=True).clamp_min(tiny)
    )


def feature_map(
    x: Tensor, scale: Tensor | None, focusing_factor: float, eps: float, floor: Tensor | None = None
) -> Tensor:
    r""":math:`\phi_p(x) = f_p((\mathrm{ReLU}(x) + \epsilon) / \mathrm{softplus}(s))` of Eq. 5.

    Args:
        x: ``(B, N, C)``.
        scale: per-channel s, broadcastable to x, or None for no division.
        eps: keeps rows without a positive entry away from zero.
        floor: per-channel eps/softplus(s), where x has scale and eps already, see ``tiles.fold_projections``.
    """
    if floor is not None:
        return focused_map(torch.maximum(x, floor), focusing_factor)
    x = F.relu(x) + eps
    if scale is not None:
        x = x / F.softplus(scale)
    return focused_map(x, focusing_factor)


def focused_linear_attention(inputs: Inputs) -> Tensor:
    r"""Focused linear attention, :math:`O = \phi_p(Q)\phi_p(K)^T V + \mathrm{DWC}(V)` (Eq. 7).

    Normalised as linear attention is (Eq. 3): row i of the attention matrix is
    :math:`\phi(Q_i)\phi(K)^T / \sum_j \phi(Q_i)\phi(K_j)^T`. The matrix itself is never built:
    :math:`\phi(K)^T V` comes first, so that the cost is O(N).

    Returns:
        ``(B, N, C)`` in the dtype of ``v``.
    """
    num_heads, hw_shape = inputs.num_heads, inputs.hw_shape
    out_dtype = inputs.v.dtype
    dtype = torch.promote_types(out_dtype, torch.float32)
    B, N, C = inputs.q.shape
    M, d = inputs.k.shape[1], C // num_heads

    def full(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype)

    with without_autocast(inputs.q.device):
        q, k, v, positions, scale, dwc_weight, dwc_bias = map(full, inputs.tensors)
        settings = (scale, inputs.focusing_factor, inputs.eps, full(inputs.floor))
        if positions is not None:
            k = k + positions
        q, k = feature_map(q, *settings), feature_map(k, *settings)

        q = q.view(B, N, num_heads, d).transpose(1, 2)  # [B, h, N, d]
        k = k.view(B, M, num_heads, d).transpose(1, 2)  # [B, h, M, d]
        values = v.reshape(B, M, num_heads, d).transpose(1, 2)  # [B, h, M, d]
        kv = k.transpose(-2, -1) @ values / M  # [B, h, d, d]
        normaliser = q @ k.mean(dim=-2).unsqueeze(-1) + inputs.eps  # [B, h, N, 1]
        out = (q @ kv / normaliser).transpose(1, 2).reshape(B, N, C)

        if dwc_weight is not None:
            out = out + depthwise_values(v, dwc_weight, dwc_bias, num_heads, hw_shape)
        return out.to(out_dtype)


def depthwise_values(
    v: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, hw_shape: tuple[int, int]
) -> Tensor:
    """The depthwise convolution of V that restores the rank of the attention (Sec. 4.2).

    ``v (B, M, C)`` -> ``(B, H*W, C)``. If M differs from H*W (spatial reduction), values are first resized
    *linearly along the flattened token axis*: that is what the original does. All heads have the same kernels
    ``(d, 1, K, K)``.
    """
    image = values_as_image(v, hw_shape)
    # Repeating the kernel over the heads is one convolution over C channels: no copy of V per head.
    weight = weight.repeat(num_heads, 1, 1, 1)
    bias = bias.repeat(num_heads) if bias is not None else None
    image = F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=v.shape[-1])
    return as_tokens(image)


def values_as_image(v: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """Values ``(B, M, C)`` as ``(B, C, H, W)``; M other than H*W are resized as in the original."""
    H, W = hw_shape
    image = v.transpose(1, 2)  # [B, C, M]
    if v.shape[1] != H * W:
        image = F.interpolate(image, size=H * W, mode="linear", align_corners=False)
    return image.reshape(*image.shape[:2], H, W)
