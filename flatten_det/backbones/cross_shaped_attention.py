"""CSwin's softmax attention in horizontal and vertical stripes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.maps import as_image, as_tokens, window_merge, window_partition


class CrossShapedAttention(nn.Module):
    """Half of the heads attend in vertical stripes, half in horizontal ones (arXiv 2107.00652, Sec. 3.2).

    The map may have any size: the last stripe is as wide as what is left, which equals padding it to
    full width and masking the padding. To the values goes the locally-enhanced positional encoding, a
    3x3 depthwise convolution within each stripe.

    Args:
        dim: channels C.
        num_heads: heads of all branches together.
        split_size: width of the stripes in tokens; None: one branch over the whole map (last stage).
        qkv_bias: bias of the query, key and value projections.
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
            out = torch.cat(
                [
                    self._in_stripes(vertical, 2, self.lepe[0]),
                    self._in_stripes(horizontal, 1, self.lepe[1]),
                ],
                dim=-1,
            )
        return self.proj(out.reshape(B, N, C))

    def _in_stripes(self, qkv: Tensor, axis: int, lepe: nn.Conv2d) -> Tensor:
        """Cut ``(B, H, W, 3, c)`` along an axis of the map and attend within each stripe."""
        size = qkv.shape[axis]
        rest = size % self.split_size
        outs = []
        for start, length, width in ((0, size - rest, self.split_size), (size - rest, rest, rest)):
            if length:
                part = qkv.narrow(axis, start, length)
                window = (part.shape[1], width) if axis == 2 else (width, part.shape[2])
                outs.append(self._attend(part, window, lepe))
        return torch.cat(outs, dim=axis)

    def _attend(self, qkv: Tensor, window: tuple[int, int], lepe: nn.Conv2d) -> Tensor:
        """Attention within windows that divide the map: ``(B, H, W, 3, c)`` -> ``(B, H, W, c)``."""
        B, H, W = qkv.shape[:3]
        q, k, v = window_partition(qkv, window).flatten(0, 1).unbind(2)  # [B*nW, n, c] each
        heads = (t.unflatten(-1, (self.heads_per_branch, -1)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        image = as_image(v, window)
        out = out + as_tokens(lepe(image))
        return window_merge(out.unflatten(0, (B, -1)), window, (H, W))
