"""FLatten-DeiT, the plain ViT of the paper's ablations, and DeiT itself as its softmax baseline."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from ..attention.layer_norm import layer_norm
from ..attention.maps import resize_grid, resize_grid_to_each
from .arch import check_attn_types, check_frozen_stages, drop_path_rates, map_sizes, resolve_arch
from .base import DenseBackbone
from .block import TransformerBlock
from .checkpointing import checkpoint_policies
from .compiling import compile_blocks
from .in_place import as_contiguous_image, computes_in_place
from .options import check_options
from .patch_embed import PatchEmbed
from .softmax_attention import SpatialReductionAttention
from .valid_region import fill_padding

_STRIDE = 16
# Of classification; the second one is that of DeiT's distilled models.
_EXTRA_TOKENS = ("cls_token", "dist_token")
_HEADS = ("head.", "head_dist.")
# What linear attention has, and DeiT's files do not.
_OF_LINEAR_ATTENTION = (".scale", ".positional_encoding", ".dwc.weight", ".dwc.bias")


def _deit(embed_dims: int, num_heads: int) -> dict:
    return {
        "embed_dims": (embed_dims,),
        "num_heads": (num_heads,),
        "mlp_ratios": (4,),
        "depths": (12,),
    }


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
        in_channels: of the image.
        attn_types: ``'L'``: focused linear attention, ``'S'``: softmax attention, in all blocks.
        focusing_factor: the power p of the focused map.
        kernel_size: of the depthwise convolution of V; 0: none.
        qkv_bias: bias of the query, key and value projections.
        drop_path_rate: stochastic depth, growing linearly from 0 to this over the blocks.
        pretrain_img_size: pixels, an int or ``(H, W)``: the learned grids live on its map and are resized
            to the map at hand.
        frozen_stages: -1: nothing is frozen; 0: the embedding of patches and positions; 1: everything.
        norm_eval: keep the norm layers in evaluation mode during training.
        mask_padding: in a detector or segmentor, compute images without the padding of their batch, so
            that what is predicted for one does not depend on the others; False: padding is taken for image.
        with_cp: activation checkpointing: compute each block again in the backward pass to save memory, or
            ``dict(policy='mlp')``; see :mod:`.checkpointing` for the policies.
        compile: run the blocks through ``torch.compile``: True, or its options; see :mod:`.compiling`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads a classification checkpoint of DeiT,
            or one saved from this class.
        pretrained: the same, as MMSegmentation's segmentors pass it on.
        convert_weights: as of MMDetection's backbones; official files are converted in any case.

    Raises:
        ValueError: for arguments that describe no network.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": _deit(embed_dims=192, num_heads=3),
        "small": _deit(embed_dims=384, num_heads=6),
        "base": _deit(embed_dims=768, num_heads=12),
    }
    stage_strides: ClassVar[tuple[int, ...]] = (_STRIDE,)
    out_indices = (0,)

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        in_channels: int = 3,
        attn_types: Sequence[str] = "L",
        focusing_factor: float = 3,
        kernel_size: int = 5,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        pretrain_img_size: int | Sequence[int] = 224,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        mask_padding: bool = True,
        with_cp: bool | Mapping[str, Any] = False,
        compile: bool | Mapping[str, Any] = False,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
        pretrained: str | None = None,
        convert_weights: bool = True,
    ) -> None:
        super().__init__(
            check_frozen_stages(frozen_stages, 1), norm_eval, mask_padding, init_cfg, pretrained
        )
        self.arch = arch
        check_options(locals())
        fields = resolve_arch(arch, self.arch_zoo)
        (attn_type,) = check_attn_types(attn_types, 1)
        (cp_policy,) = checkpoint_policies(with_cp, 1)
        (rates,) = drop_path_rates(drop_path_rate, fields["depths"])
        (dim,), (heads,), (mlp_ratio,) = (
            fields[name] for name in ("embed_dims", "num_heads", "mlp_ratios")
        )
        self.grid_size = map_sizes(pretrain_img_size)[2]  # of stride 16
        self.feature_dims = (dim,)

        def attention() -> nn.Module:
            if attn_type == "S":
                return SpatialReductionAttention(dim, heads, sr_ratio=1, qkv_bias=qkv_bias)
            return FocusedLinearAttention(
                dim,
                heads,
                grid_size=self.grid_size,
                qkv_bias=qkv_bias,
                focusing_factor=focusing_factor,
                kernel_size=kernel_size,
            )

        self.patch_embed = PatchEmbed(in_channels, dim, stride=_STRIDE, norm=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid_size[0] * self.grid_size[1], dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(
                dim, attention(), mlp_ratio, drop_path=rate, norm_eps=1e-6, cp_policy=cp_policy
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self._init_from_scratch()
        self.freeze()
        compile_blocks(self, compile)

    def computes_padded(self, x: Tensor) -> bool:
        return x.is_cuda

    def forward_images(
        self, x: Tensor, sizes: Sequence[tuple[int, int]] | None = None
    ) -> tuple[Tensor, ...]:
        inplace, padding = sizes is None and computes_in_place(self, x), None
        if sizes is not None:
            x, (padding,) = fill_padding(x, sizes, self.strides, [self.grid_size])
        x, hw_shape = self.patch_embed(x, inplace)
        if padding is None:
            x = x + resize_grid(self.pos_embed, self.grid_size, hw_shape)
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
        return super().grid_shapes() | {"pos_embed": self.grid_size}

    def optional_keys(self) -> set[str]:
        return {name for name in self.state_dict() if name.endswith(_OF_LINEAR_ATTENTION)}

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Drop heads and class tokens, whose places are first in ``pos_embed``; cut ``qkv`` for softmax."""
        tokens = [name for name in _EXTRA_TOKENS if name in state]
        dropped = [name for name in state if name in tokens or name.startswith(_HEADS)]
        converted = {name: value for name, value in state.items() if name not in dropped}
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
