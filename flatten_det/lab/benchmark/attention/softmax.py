"""Softmax attention over the same tokens: another function, at the cost that the linear one is to beat."""

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# Without a fused kernel the matrix of all pairs of tokens would not fit into any memory for long.
_FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
]


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    positions: Tensor | None = None,
    scale: Tensor | None = None,
    dwc_weight: Tensor | None = None,
    dwc_bias: Tensor | None = None,
) -> Tensor:
    """PyTorch's fused attention of q, k and v, each ``(B, N, C)``; the other arguments have no effect.

    Raises:
        RuntimeError: if there is no fused kernel for the device, the dtype and the shape.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel(_FUSED):
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(2)
