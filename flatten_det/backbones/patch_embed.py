"""Non-overlapping patches to tokens, for images of any size."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Project non-overlapping patches linearly and normalise them.

    Maps that the patch size does not divide are padded with zeros at the bottom and right.

    Args:
        in_channels: of the map.
        embed_dims: channels C of the tokens.
        patch_size: side of a patch, in pixels of the map.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """``(B, C_in, H, W)`` -> tokens ``(B, H'*W', C)`` and ``(H', W')``, sizes rounded up."""
        pad_h, pad_w = (-size % self.patch_size for size in x.shape[2:])
        if pad_h or pad_w:
            x = F.pad(x, (0, pad_w, 0, pad_h))
        x = self.proj(x)
        return self.norm(x.flatten(2).transpose(1, 2)), tuple(x.shape[2:])
