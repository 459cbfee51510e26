"""Focused linear attention as published code computes it: the plain PyTorch that others are compared with.

Our own transcription of the original semantics, operation by operation and in the precision of its inputs,
so that it costs what they cost. It is a baseline of the benchmark, not for use: see ``attention.reference``.
"""

import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6
FOCUSING_FACTOR = 3


def focused_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    positions: Tensor,
    scale: Tensor,
    dwc_weight: Tensor,
    dwc_bias: Tensor,
) -> Tensor:
    """Arguments and result as for :func:`flatten_det.attention.reference.focused_linear_attention`."""
    B, N, C = q.shape
    k = k + positions
    q, k = F.relu(q) + EPS, F.relu(k) + EPS
    scale = F.softplus(scale)
    q, k = _focus(q / scale), _focus(k / scale)
    q, k, v = (_split_heads(x, num_heads) for x in (q, k, v))  # [B*h, N, d]
    z = 1 / (q @ k.mean(dim=-2, keepdim=True).transpose(-2, -1) + EPS)
    kv = (k.transpose(-2, -1) * N**-0.5) @ (v * N**-0.5)
    out = _merge_heads(q @ kv * z, num_heads)

    image = v.transpose(1, 2).reshape(B * num_heads, C // num_heads, *hw_shape)
    image = F.conv2d(
        image, dwc_weight, dwc_bias, padding=dwc_weight.shape[-1] // 2, groups=C // num_heads
    )
    return out + _merge_heads(image.flatten(2).transpose(1, 2), num_heads)


def _focus(x: Tensor) -> Tensor:
    norm = x.norm(dim=-1, keepdim=True)
    x = x**FOCUSING_FACTOR
    return x / x.norm(dim=-1, keepdim=True) * norm


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2).flatten(0, 1)


def _merge_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)
