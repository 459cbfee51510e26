"""The pre-norm transformer block that all families share."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .mlp import DepthwiseMlp, TokenMlp


class TransformerBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, with stochastic depth on both branches.

    Args:
        dim: channels C.
        attn: layer called as ``attn(x, hw_shape)``.
        mlp_ratio: hidden channels of the MLP / C.
        drop_path: probability to drop a branch for a sample in training.
        norm_eps: of the LayerNorms.
        with_cp: recompute the block in the backward pass instead of storing its activations.
        mlp_conv: a depthwise convolution inside the MLP (PVTv2).
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
        with_cp: bool,
        mlp_conv: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        hidden = int(dim * mlp_ratio)
        self.mlp_conv = mlp_conv
        self.mlp = DepthwiseMlp(dim, hidden) if mlp_conv else TokenMlp(dim, hidden)
        self.with_cp = with_cp

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``."""
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(self._forward, x, hw_shape, use_reentrant=False)
        return self._forward(x, hw_shape)

    def _forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), hw_shape))
        normed = self.norm2(x)
        return x + self.drop_path(self.mlp(normed, hw_shape) if self.mlp_conv else self.mlp(normed))
