"""The pre-norm transformer block that all families share."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .checkpointing import BLOCK, ELEMENTWISE, MLP, recompute, recompute_elementwise
from .mlp import DepthwiseMlp, TokenMlp, pays_in_portions


class TransformerBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, with stochastic depth on both branches.

    Args:
        dim: channels C.
        attn: layer called as ``attn(x, hw_shape)``.
        mlp_ratio: hidden channels of the MLP / C.
        drop_path: probability to drop a branch for a sample in training.
        norm_eps: of the LayerNorms.
        cp_policy: what is computed again in the backward pass, see :mod:`.checkpointing`; None: nothing.
        mlp_conv: a depthwise convolution inside the MLP (PVTv2).
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float,
        drop_path: float,
        norm_eps: float,
        cp_policy: str | None,
        mlp_conv: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        hidden = int(dim * mlp_ratio)
        self.mlp = DepthwiseMlp(dim, hidden) if mlp_conv else TokenMlp(dim, hidden)
        self.cp_policy = cp_policy

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``."""
        policy = self.cp_policy if torch.is_grad_enabled() else None
        if policy == BLOCK:
            return recompute(self._forward, x, hw_shape)
        if policy == ELEMENTWISE:
            return recompute_elementwise(self._forward, x, hw_shape)
        if policy == MLP:
            return recompute(self._add_mlp, self._add_attention(x, hw_shape), hw_shape)
        return self._forward(x, hw_shape)

    def _forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        x = self._add_attention(x, hw_shape)
        if self._adds_in_portions(x):
            self.mlp.add_in_portions(x, hw_shape, self.norm2)
            return x
        return self._add_mlp(x, hw_shape)

    def _add_attention(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        attended = self.drop_path(self.attn(self.norm1(x), hw_shape))
        # Without gradients nobody else needs what the attention returns: no fresh memory for the sum.
        in_place = not torch.is_grad_enabled() and attended.dtype == x.dtype
        return attended.add_(x) if in_place else x + attended

    def _add_mlp(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        return x + self.drop_path(self.mlp(self.norm2(x), hw_shape))

    def _adds_in_portions(self, x: Tensor) -> bool:
        is_dropping = self.training and not isinstance(self.drop_path, nn.Identity)
        # Somebody who listens to the MLP wants it whole.
        is_observed = self.mlp._forward_hooks or self.mlp._forward_pre_hooks
        if is_dropping or is_observed or not x.is_contiguous():
            return False
        return pays_in_portions(x, self.mlp.fc1.out_features)
