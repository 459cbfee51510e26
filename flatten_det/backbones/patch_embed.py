"""Patches to tokens, for images of any size."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention.eager import is_plain
from ..attention.layer_norm import layer_norm, product_dtype
from ..attention.maps import as_tokens, strided_convolution
from .in_place import apply_in_place


class PatchEmbed(nn.Module):
    """Project patches linearly, and normalise them: one token for every ``stride`` x ``stride`` pixels.

    Maps that the stride does not divide are padded with zeros at the bottom and right, so that the
    token map's size is rounded up.

    Args:
        in_channels: of the map.
        embed_dims: channels C of the tokens.
        stride: of the patches, in pixels of the map.
        patch_size: side of a patch; larger than the stride, patches overlap. None: the stride.
        padding: zeros around the map.
        norm: normalise the tokens; a plain ViT does not.
    """

    def __init__(
        self,
        in_channels: int,
        embed_dims: int,
        stride: int,
        patch_size: int | None = None,
        padding: int = 0,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.geometry = (patch_size or stride, stride, padding)
        self.proj = nn.Conv2d(in_channels, embed_dims, *self.geometry)
        self.norm = nn.LayerNorm(embed_dims) if norm else nn.Identity()

    def forward(self, x: Tensor, inplace: bool = False) -> tuple[Tensor, tuple[int, int]]:
        """``(B, C_in, H, W)`` -> tokens ``(B, H'*W', C)`` and ``(H', W')``, sizes rounded up.

        With ``inplace``, of :func:`.in_place.computes_in_place`, norms overwrite what they are given.
        """
        patch, stride, padding = self.geometry
        missing = [
            max(0, (-(-size // stride) - 1) * stride + patch - 2 * padding - size)
            for size in x.shape[2:]
        ]
        if any(missing):
            x = F.pad(x, (0, missing[1], 0, missing[0]))
        # The layout of tokens: maps of tokens have it already, and the result is tokens without a copy.
        if x.is_cuda and x.dtype == torch.float32 != product_dtype(x):
            x = x.to(
                product_dtype(x), memory_format=torch.channels_last
            )  # Autocast's cast and ours.
        x = strided_convolution(self.proj, x.contiguous(memory_format=torch.channels_last))
        tokens, hw_shape = as_tokens(x), tuple(x.shape[2:])
        if inplace and tokens.is_contiguous() and self._norms_in_place(tokens):
            # No view of the map any more: the compiler tells views from what other blocks are given.
            return apply_in_place(self.norm, tokens).data, hw_shape
        return layer_norm(tokens, self.norm), hw_shape

    def _norms_in_place(self, tokens: Tensor) -> bool:
        if not is_plain(self.norm, nn.LayerNorm) or self.norm.weight is None:
            return False
        # Under autocast the norm's result is of another dtype than what it is given.
        return tokens.dtype == self.norm.weight.dtype
