"""FLatten-DeiT, the plain ViT of the paper's ablations, and DeiT itself as its softmax baseline."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from ..attention.layer_norm import layer_norm
from ..attention.maps import resize_grid, resize_grid_to_each
from .base import DenseBackbone, fill_padding
from .blocks import PatchEmbed, as_contiguous_image, computes_in_place
from .softmax_attention import SpatialReductionAttention

# Of classification; the second one is that of DeiT's distilled models.
_EXTRA_TOKENS = ("cls_token", "dist_token")
_HEADS = ("head.", "head_dist.")
# What linear attention has, and DeiT's files do not.
_OF_LINEAR_ATTENTION = (".scale", ".positional_encoding", ".dwc.weight", ".dwc.bias")


def _deit(embed_dims: int, num_heads: int) -> dict:
    return dict(embed_dims=(embed_dims,), num_heads=(num_heads,), mlp_ratios=(4,), depths=(12,))


@MODELS.register_module()
class FLattenDeiT(DenseBackbone):
    """DeiT with focused linear attention, as in the ablations of arXiv 2308.00442 (DeiT: 2012.12877).

    A plain ViT is one stage: it returns one map of stride 16, after the final norm. Detectors make a
    pyramid of it with :class:`~flatten_det.necks.SimpleFeaturePyramid`.

    There is no class token: dense prediction does not ask for one, and it has no place on the map on which
    the linear attention convolves the values. Parameter names are DeiT's (and timm's), but for ``q`` and
    ``kv`` of softmax attention, which are one ``qkv`` there. DeiT's weights load into linear attention
    too; what that has besides is left as initialised.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict that changes single fields (``embed_dims,
            num_heads, mlp_ratios, depths``, each a tuple of one value) of ``base`` (default ``'tiny'``).
        attn_types: ``'L'``: focused linear attention, ``'S'``: softmax attention, in all blocks.
        options: see :class:`.base.DenseBackbone`.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": _deit(embed_dims=192, num_heads=3),
        "small": _deit(embed_dims=384, num_heads=6),
        "base": _deit(embed_dims=768, num_heads=12),
    }
    stage_strides: ClassVar[tuple[int, ...]] = (16,)

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        attn_types: Sequence[str] = "L",
        **options: Any,
    ) -> None:
        super().__init__(arch, attn_types, (0,), **options)
        (dim,), (height, width) = self.feature_dims, self.grid_sizes[0]
        self.patch_embed = PatchEmbed(self.in_channels, dim, *self.stage_strides, norm=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, height * width, dim))
        self.blocks = self.make_blocks(0, *self.fields["mlp_ratios"])
        self.norm = nn.LayerNorm(dim, eps=self.norm_eps)
        self.finish()

    def make_attention(self, stage: int, index: int) -> nn.Module:
        if self.attn_types[stage] == "L":
            return self.linear_attention(stage)
        heads = self.fields["num_heads"][stage]
        return SpatialReductionAttention(self.feature_dims[stage], heads, 1, self.qkv_bias)

    knows_padding = True

    def forward_images(
        self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, ...]:
        inplace, padding = sizes is None and computes_in_place(self, x), None
        if sizes is not None:
            x, (padding,) = fill_padding(x, sizes, self.strides, self.grid_sizes)
        x, hw_shape = self.patch_embed(x)
        if padding is None:
            x = x + resize_grid(self.pos_embed, self.grid_sizes[0], hw_shape)
        else:
            x = x + resize_grid_to_each(self.pos_embed, padding)
        for block in self.blocks:
            x = block(x, hw_shape, inplace, padding)
        x = layer_norm(x, self.norm)
        if padding is not None:
            x = x.masked_fill(padding.mask, 0)
        return (as_contiguous_image(x, hw_shape),)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^(?:patch|pos)_embed",
            blocks=[(r"^blocks\.(\d+)", None), (r"^norm", MATCH_PREV_GROUP)],
        )

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        if self.frozen_stages >= 0:
            yield from (self.patch_embed, self.pos_embed)
        if self.frozen_stages >= 1:
            yield from (self.blocks, self.norm)

    def grid_shapes(self) -> dict[str, tuple[int, int]]:
        return super().grid_shapes() | {"pos_embed": self.grid_sizes[0]}

    def optional_keys(self) -> set[str]:
        return {name for name in self.state_dict() if name.endswith(_OF_LINEAR_ATTENTION)}

    def own_name(self, name: str) -> str | None:
        return None if name in _EXTRA_TOKENS or name.startswith(_HEADS) else name

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Class tokens have the first places in ``pos_embed``; softmax attention has ``qkv`` in two parts."""
        tokens = [name for name in _EXTRA_TOKENS if name in state]
        converted, dropped = super().convert_official(state)
        grid = converted.get("pos_embed")
        if tokens and grid is not None and grid.dim() == 3:
            converted["pos_embed"] = grid[:, len(tokens) :]
        layers = dict(self.named_modules())
        for name in list(converted):
            layer, _, rest = name.partition(".qkv.")
            is_softmax = isinstance(layers.get(layer), SpatialReductionAttention)
            if is_softmax and rest and converted[name].dim():
                qkv = converted.pop(name)
                third = len(qkv) // 3
                converted[f"{layer}.q.{rest}"] = qkv[:third]
                converted[f"{layer}.kv.{rest}"] = qkv[third:]
        return converted, dropped
