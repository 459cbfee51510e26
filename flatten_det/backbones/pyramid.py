"""What PVT, PVTv2 and CSwin have in common: four stages of tokens, each a patch embedding and blocks."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..attention.maps import Padding, as_image
from .arch import check_frozen_stages, check_out_indices, map_sizes
from .base import DenseBackbone
from .in_place import as_contiguous_image, computes_in_place
from .valid_region import fill_padding


class PyramidBackbone(DenseBackbone):
    """Stages numbered from 1: ``patch_embed1``, ``block1`` (a list), and what a subclass adds to them.

    Numbered attributes instead of a list keep the official parameter names.

    Args:
        embed_dims: channels of each stage.
        patch_embed: builds the patch embedding of a stage (0 to 3), called with the stage, its input
            and its output channels.
        blocks: builds the blocks of a stage.
        arch, in_channels, out_indices, pretrain_img_size, frozen_stages, norm_eval, mask_padding,
            init_cfg, pretrained: as for the families.
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        patch_embed: Callable[[int, int, int], nn.Module],
        blocks: Callable[[int], Iterable[nn.Module]],
        *,
        arch: str | Mapping[str, Any],
        in_channels: int,
        out_indices: Sequence[int],
        pretrain_img_size: int | Sequence[int],
        frozen_stages: int,
        norm_eval: bool,
        mask_padding: bool,
        init_cfg: Mapping | Sequence[Mapping] | None,
        pretrained: str | None,
    ) -> None:
        super().__init__(
            check_frozen_stages(frozen_stages), norm_eval, mask_padding, init_cfg, pretrained
        )
        self.arch = arch
        self.out_indices = check_out_indices(out_indices)
        self.num_stages = self.out_indices[-1] + 1
        self.feature_dims = tuple(embed_dims[: self.num_stages])
        self.grid_sizes = map_sizes(pretrain_img_size)
        for stage in range(self.num_stages):
            channels = embed_dims[stage - 1] if stage else in_channels
            embedding = patch_embed(stage, channels, embed_dims[stage])
            setattr(self, f"patch_embed{stage + 1}", embedding)
            setattr(self, f"block{stage + 1}", nn.ModuleList(blocks(stage)))

    def forward_images(
        self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, ...]:
        outs = []
        inplace = sizes is None and computes_in_place(self, x)
        paddings = [None] * self.num_stages
        if sizes is not None:
            stages = slice(0, self.num_stages)
            x, paddings = fill_padding(x, sizes, self.strides[stages], self.grid_sizes[stages])
        for stage, padding in enumerate(paddings):
            x, hw_shape = getattr(self, f"patch_embed{stage + 1}")(x, inplace)
            x = self.before_blocks(stage, x, hw_shape, inplace, padding)
            for block in getattr(self, f"block{stage + 1}"):
                x = block(x, hw_shape, inplace, padding)
            x = self.after_blocks(stage, x)
            if padding is not None:
                # Convolutions see the zeros that an image alone is surrounded by.
                x = x.masked_fill(padding.mask, 0)
            if stage in self.out_indices:
                out = self.to_output(stage, x)
                outs.append(as_contiguous_image(out, hw_shape))
            x = as_image(x, hw_shape)
        return tuple(outs)

    def before_blocks(
        self,
        stage: int,
        x: Tensor,
        hw_shape: tuple[int, int],
        inplace: bool,
        padding: Padding | None,
    ) -> Tensor:
        """Tokens ``(B, N, C)`` on their way from the patch embedding to the blocks.

        With ``inplace``, they may be overwritten.
        """
        return x

    def after_blocks(self, stage: int, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` on their way to the next stage and to the output."""
        return x

    def to_output(self, stage: int, x: Tensor) -> Tensor:
        """Tokens ``(B, N, C)`` on their way to the output alone."""
        return x

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        for name, part in (*self.named_children(), *self.named_parameters(recurse=False)):
            is_embedding = name in ("patch_embed1", "pos_embed1")
            if (0 if is_embedding else _stage_number(name)) <= self.frozen_stages:
                yield part

    def is_beyond(self, name: str) -> bool:
        """Whether a parameter belongs to a stage after the last of ``out_indices``."""
        return _stage_number(name.split(".")[0]) > self.num_stages


def _stage_number(name: str) -> int:
    """1 to 4 for ``patch_embed1`` … ``norm4``; 0 for names without a stage."""
    match = re.fullmatch(r"(?:patch_embed|pos_embed|block|norm)([1-4])", name)
    return int(match.group(1)) if match else 0
