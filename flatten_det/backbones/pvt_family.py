"""The arguments and blocks that FLatten-PVT and FLatten-PVTv2 share."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from .arch import check_attn_types, drop_path_rates, map_sizes, resolve_arch
from .block import TransformerBlock
from .checkpointing import checkpoint_policies
from .compiling import compile_blocks
from .options import check_options
from .patch_embed import PatchEmbed
from .pyramid import PyramidBackbone
from .softmax_attention import SpatialReductionAttention


class PVTFamily(PyramidBackbone):
    """Base of both; see there.

    Args:
        arch: a name in ``arch_zoo`` (default: the smallest), or a dict that changes single fields
            (``embed_dims, num_heads, mlp_ratios, depths``, four values each, and ``sr_ratios`` of the
            softmax stages) of ``base`` (default: the smallest).
        in_channels: of the image.
        out_indices: stages to return, ascending. Later stages are not built.
        attn_types: per stage ``'L'``: focused linear attention, ``'S'``: the softmax attention of the
            original with spatially reduced keys and values.
        la_sr_ratios: spatial reduction of keys and values in the linear stages (the original: none).
        focusing_factor: the power p of the focused map.
        kernel_size: of the depthwise convolution of V; 0: none.
        qkv_bias: bias of the query, key and value projections.
        drop_path_rate: stochastic depth, growing linearly from 0 to this over the blocks.
        pretrain_img_size: pixels, an int or ``(H, W)``: the learned grids live on its maps and are
            resized to the map at hand.
        frozen_stages: -1: nothing is frozen; 0: the patch embedding; n: it and the first n stages.
        norm_eval: keep the norm layers in evaluation mode during training.
        mask_padding: in a detector or segmentor, compute images without the padding of their batch, so
            that what is predicted for one does not depend on the others; False: padding is taken for image.
        with_cp: activation checkpointing: compute each block again in the backward pass to save memory, or
            ``dict(policy='mlp', stages=(0, 1))``; see :mod:`.checkpointing` for the policies.
        compile: run the blocks through ``torch.compile``: True, or its options; see :mod:`.compiling`.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads an official classification
            checkpoint.
        pretrained: the same, as MMSegmentation's segmentors pass it on.
        convert_weights: as of MMDetection's backbones; official files are converted in any case.

    Raises:
        ValueError: for arguments that describe no network.
    """

    arch_zoo: ClassVar[dict[str, dict]]
    mlp_conv: ClassVar[bool]

    def __init__(
        self,
        arch: str | Mapping[str, Any] | None = None,
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        attn_types: Sequence[str] = ("L", "L", "L", "L"),
        la_sr_ratios: Sequence[int] = (1, 1, 1, 1),
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
        arch = next(iter(self.arch_zoo)) if arch is None else arch
        check_options(locals())
        fields = resolve_arch(arch, self.arch_zoo)
        attn_types = check_attn_types(attn_types)
        grid_sizes = map_sizes(pretrain_img_size)
        cp_policies = checkpoint_policies(with_cp)
        drop_paths = drop_path_rates(drop_path_rate, fields["depths"])

        def attention(stage: int) -> nn.Module:
            dim, heads = fields["embed_dims"][stage], fields["num_heads"][stage]
            if attn_types[stage] == "S":
                return SpatialReductionAttention(dim, heads, fields["sr_ratios"][stage], qkv_bias)
            return FocusedLinearAttention(
                dim,
                heads,
                grid_size=grid_sizes[stage],
                qkv_bias=qkv_bias,
                fused_qkv=False,
                sr_ratio=la_sr_ratios[stage],
                focusing_factor=focusing_factor,
                kernel_size=kernel_size,
            )

        def blocks(stage: int) -> Iterator[nn.Module]:
            for rate in drop_paths[stage]:
                yield TransformerBlock(
                    fields["embed_dims"][stage],
                    attention(stage),
                    fields["mlp_ratios"][stage],
                    drop_path=rate,
                    norm_eps=1e-6,
                    cp_policy=cp_policies[stage],
                    mlp_conv=self.mlp_conv,
                )

        super().__init__(
            fields["embed_dims"],
            self.make_patch_embed,
            blocks,
            arch=arch,
            in_channels=in_channels,
            out_indices=out_indices,
            pretrain_img_size=pretrain_img_size,
            frozen_stages=frozen_stages,
            norm_eval=norm_eval,
            mask_padding=mask_padding,
            init_cfg=init_cfg,
            pretrained=pretrained,
        )
        self.add_own_parameters()
        self._init_from_scratch()
        self.freeze()
        compile_blocks(self, compile)

    def computes_padded(self, x: Tensor) -> bool:
        layers = (m for m in self.modules() if isinstance(m, FocusedLinearAttention))
        return x.is_cuda and all(layer.takes_padding for layer in layers)

    @staticmethod
    def make_patch_embed(stage: int, in_channels: int, embed_dims: int) -> PatchEmbed:
        """The patch embedding of a stage (0 to 3)."""
        raise NotImplementedError

    def add_own_parameters(self) -> None:
        """Add what only this member of the family has to its stages."""
        raise NotImplementedError
