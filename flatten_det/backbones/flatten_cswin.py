"""FLatten-CSwin, and CSwin itself as its softmax baseline."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..attention import FocusedLinearAttention
from ..attention.layer_norm import layer_norm
from .arch import NUM_STAGES, check_attn_types, drop_path_rates, map_sizes, resolve_arch
from .block import TransformerBlock
from .checkpointing import checkpoint_policies
from .compiling import compile_blocks
from .cross_shaped_attention import CrossShapedAttention
from .options import check_options
from .patch_embed import PatchEmbed
from .pyramid import PyramidBackbone


# Both spellings are in use for CSWin.
@MODELS.register_module(name=["FLattenCSwin", "FLattenCSWin"])
class FLattenCSwin(PyramidBackbone):
    """CSwin with focused linear attention in its first stages (arXiv 2308.00442; CSwin: 2107.00652).

    One LayerNorm an output map (``norm1`` … ``norm4``): the last one is the checkpoint's final norm,
    the others start at identity.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, or a dict that changes single fields (``embed_dims``
            of the first stage, ``depths``, ``num_heads``) of ``base`` (default ``'tiny'``). CSwin itself
            has ``depths=(1, 2, 21, 1)`` in its tiny and ``(2, 4, 32, 2)`` in its base model.
        in_channels: of the image.
        out_indices: stages to return, ascending. Later stages are not built.
        attn_types: per stage ``'L'``: focused linear attention over the whole map, ``'S'``: CSwin's
            cross-shaped windows (in the last stage: softmax attention over the whole map).
        split_size: width of the stripes in the softmax stages, in tokens (the models pretrained at
            384: ``(1, 2, 12, 12)``). The last value is not used.
        la_window_size: windows of the linear stages in tokens; None: the whole map.
        mlp_ratio: hidden channels of the MLP / channels.
        focusing_factor: the power p of the focused map.
        kernel_size: of the depthwise convolution of V; 0: none.
        qkv_bias: bias of the query, key and value projections.
        drop_path_rate: stochastic depth, growing linearly from 0 to this over the blocks.
        pretrain_img_size: pixels, an int or ``(H, W)``: the learned grids of the linear stages live on
            its maps and are resized to the map at hand.
        frozen_stages: -1: nothing is frozen; 0: the patch embedding; n: it and the first n stages.
        norm_eval: keep the norm layers in evaluation mode during training.
        mask_padding: in a detector or segmentor, compute images without the padding of their batch, so
            that what is predicted for one does not depend on the others; False: padding is taken for image.
        with_cp: activation checkpointing: compute each block again in the backward pass to save memory, or
            ``dict(policy='mlp', stages=(0, 1))``; see :mod:`.checkpointing` for the policies.
        compile: run the blocks through ``torch.compile``: True, or its options; see :mod:`.compiling`.
        init_cfg: ``dict(type='Pretrained', checkpoint='flatten_cswin_t.pth')`` loads an official
            classification checkpoint.
        pretrained: the same, as MMSegmentation's segmentors pass it on.
        convert_weights: as of MMDetection's backbones; official files are converted in any case.

    Raises:
        ValueError: for arguments that describe no network.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": {"embed_dims": 64, "depths": (2, 4, 18, 1), "num_heads": (2, 4, 8, 16)},
        "small": {"embed_dims": 64, "depths": (2, 4, 32, 2), "num_heads": (2, 4, 8, 16)},
        "base": {"embed_dims": 96, "depths": (3, 6, 29, 2), "num_heads": (4, 8, 16, 32)},
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        attn_types: Sequence[str] = ("L", "L", "S", "S"),
        split_size: Sequence[int] = (1, 2, 7, 7),
        la_window_size: int | None = None,
        mlp_ratio: float = 4.0,
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
        check_options(locals())
        fields = resolve_arch(arch, self.arch_zoo)
        attn_types = check_attn_types(attn_types)
        dims = [fields["embed_dims"] * 2**stage for stage in range(NUM_STAGES)]
        grid_sizes = map_sizes(pretrain_img_size)
        cp_policies = checkpoint_policies(with_cp)
        drop_paths = drop_path_rates(drop_path_rate, fields["depths"])

        def attention(stage: int) -> nn.Module:
            heads = fields["num_heads"][stage]
            if attn_types[stage] == "S":
                split = None if stage == NUM_STAGES - 1 else split_size[stage]
                return CrossShapedAttention(dims[stage], heads, split, qkv_bias)
            return FocusedLinearAttention(
                dims[stage],
                heads,
                grid_size=grid_sizes[stage],
                window_size=la_window_size,
                qkv_bias=qkv_bias,
                focusing_factor=focusing_factor,
                kernel_size=kernel_size,
                lepe_kernel_size=3,
            )

        def blocks(stage: int) -> Iterator[nn.Module]:
            for rate in drop_paths[stage]:
                yield TransformerBlock(
                    dims[stage],
                    attention(stage),
                    mlp_ratio,
                    drop_path=rate,
                    norm_eps=1e-5,
                    cp_policy=cp_policies[stage],
                )

        super().__init__(
            dims,
            _overlapping_patches,
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
        for stage in self.out_indices:
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(dims[stage]))
        self._init_from_scratch()
        self.freeze()
        compile_blocks(self, compile)

    def to_output(self, stage: int, x: Tensor) -> Tensor:
        return layer_norm(x, getattr(self, f"norm{stage + 1}"))

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Stages and merges are numbered like PVT's; the final norm becomes ``norm4``."""
        linear = {n.removesuffix("attns.0.scale") for n in state if n.endswith("attns.0.scale")}
        converted, dropped = {}, []
        for name, value in state.items():
            new_name = _dense_name(name)
            if name.split("attns.")[0] in linear:  # one branch only: no list of convolutions
                new_name = new_name.replace(".lepe.0.", ".lepe.")
            if name.startswith("head.") or self.is_beyond(new_name):
                dropped.append(name)
            else:
                converted[new_name] = value
        return converted, dropped

    def optional_keys(self) -> set[str]:
        own = [stage for stage in self.out_indices if stage < NUM_STAGES - 1]
        return {f"norm{stage + 1}.{part}" for stage in own for part in ("weight", "bias")}


def _overlapping_patches(stage: int, channels: int, dim: int) -> PatchEmbed:
    if stage == 0:
        return PatchEmbed(channels, dim, stride=4, patch_size=7, padding=2)
    return PatchEmbed(channels, dim, stride=2, patch_size=3, padding=1)


# Official name -> ours, the first that matches. A linear stage has one branch, whose parameters move up.
_RENAMES = (
    (r"stage1_conv_embed\.0\.", "patch_embed1.proj."),
    (r"stage1_conv_embed\.2\.", "patch_embed1.norm."),
    (r"merge(\d)\.conv\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj."),
    (r"merge(\d)\.norm\.", lambda m: f"patch_embed{int(m[1]) + 1}.norm."),
    (r"stage(\d)\.(\d+)\.(qkv|proj)\.", r"block\1.\2.attn.\3."),
    (r"stage(\d)\.(\d+)\.attns\.(\d)\.get_v\.", r"block\1.\2.attn.lepe.\3."),
    (r"stage(\d)\.(\d+)\.attns\.0\.", r"block\1.\2.attn."),
    (r"stage(\d)\.", r"block\1."),
    (r"norm\.", "norm4."),
)


def _dense_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        renamed, found = re.subn(rf"^{pattern}", replacement, name)
        if found:
            return renamed
    return name
