"""The pre-norm transformer block that all families share."""

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from ..attention.eager import is_plain_eager
from ..attention.layer_norm import add_layer_norm
from ..attention.maps import Padding
from .checkpointing import BLOCK, ELEMENTWISE, MLP, recompute, recompute_elementwise
from .in_place import computes_in_place
from .mlp import DepthwiseMlp, TokenMlp, adds_in_portions


class TransformerBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, with stochastic depth on both branches.

    Args:
        dim: channels C.
        attn: layer called as ``attn(x, hw_shape)``, with the padding as a third argument if there is some.
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

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        inplace: bool = False,
        padding: Padding | None = None,
    ) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``.

        Args:
            inplace: x may be overwritten: :func:`.in_place.computes_in_place` holds for the backbone.
            padding: for an ``attn`` that takes it, not in place: each map is computed as alone, and what the
                result has in the padding is of no use.
        """
        maps = (hw_shape,) if padding is None else (hw_shape, padding)
        policy = self.cp_policy if torch.is_grad_enabled() else None
        if policy == BLOCK:
            return recompute(self._forward, x, *maps)
        if policy == ELEMENTWISE:
            return recompute_elementwise(self._forward, x, *maps)
        if policy == MLP:
            return recompute(self._add_mlp, self._add_attention(x, *maps), *maps)
        if padding is not None:
            return self._forward(x, *maps)
        # A compiled block is called from a backbone that is not, and plans its memory itself.
        is_alone = inplace and is_plain_eager()
        if (is_alone or computes_in_place(self, x)) and not self._is_dropping():
            return self._forward_in_place(x, hw_shape, inplace)
        return self._forward(x, hw_shape)

    def _forward(self, x: Tensor, *maps: Any) -> Tensor:
        """``maps``: their size and, if there is some, their padding."""
        x, normed = add_layer_norm(x, None, self.norm1)
        branch = self.attn(normed, *maps)
        x, normed = add_layer_norm(x, branch, self.norm2, self.drop_path)
        return x + self.drop_path(self.mlp(normed, *maps))

    def _add_attention(self, x: Tensor, *maps: Any) -> Tensor:
        x, normed = add_layer_norm(x, None, self.norm1)
        return x + self.drop_path(self.attn(normed, *maps))

    def _add_mlp(self, x: Tensor, *maps: Any) -> Tensor:
        x, normed = add_layer_norm(x, None, self.norm2)
        return x + self.drop_path(self.mlp(normed, *maps))

    def _is_dropping(self) -> bool:
        return self.drop_path.training and not isinstance(self.drop_path, nn.Identity)

    def _forward_in_place(self, x: Tensor, hw_shape: tuple[int, int], inplace: bool) -> Tensor:
        """The same in one tensor of x's size: the first touch of fresh memory costs more than arithmetic."""
        inplace = inplace and x.is_contiguous()
        if isinstance(self.attn, FocusedLinearAttention) and self.attn.adds_in_tiles(x, self.norm1):
            x = self.attn.add_in_tiles(x, hw_shape, self.norm1, inplace)
        else:
            attended = self.attn(self.norm1(x), hw_shape)
            x = attended.add_(x) if attended.dtype == x.dtype else attended + x
        if adds_in_portions(self.mlp, x, self.norm2):
            self.mlp.add_in_portions(x, hw_shape, self.norm2)
            return x
        return self._add_mlp(x, hw_shape)
