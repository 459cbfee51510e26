"""FLatten-PVT, and PVT itself as its softmax baseline."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..attention import FocusedLinearAttention, resize_grid
from .arch import (
    check_attn_types,
    check_frozen_stages,
    check_out_indices,
    drop_path_rates,
    map_sizes,
    resolve_arch,
)
from .base import DenseBackbone
from .block import TransformerBlock
from .patch_embed import PatchEmbed
from .softmax_attention import SpatialReductionAttention


def _pvt(depths: tuple[int, ...]) -> dict:
    return {
        "embed_dims": (64, 128, 320, 512),
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (8, 8, 4, 4),
        "depths": depths,
        "sr_ratios": (8, 4, 2, 1),
    }


@MODELS.register_module()
class FLattenPVT(DenseBackbone):
    """Pyramid Vision Transformer with focused linear attention (arXiv 2308.00442; PVT: 2102.12122).

    As in PVT's detection code, the maps are returned without a norm.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'medium'``, ``'large'``, or a dict that changes single fields
            (``embed_dims, num_heads, mlp_ratios, depths``, four values each, and ``sr_ratios`` of the
            softmax stages) of ``base`` (default ``'tiny'``).
        in_channels: of the image.
        out_indices: stages to return, ascending. Later stages are not built.
        attn_types: per stage ``'L'``: focused linear attention, ``'S'``: PVT's softmax attention.
        la_sr_ratios: spatial reduction of keys and values in the linear stages (the original: none).
        focusing_factor: the power p of the focused map.
        kernel_size: of the depthwise convolution of V; 0: none.
        qkv_bias: bias of the query, key and value projections.
        drop_path_rate: stochastic depth, growing linearly from 0 to this over the blocks.
        pretrain_img_size: pixels, an int or ``(H, W)``: the learned grids live on its maps and are
            resized to the map at hand.
        frozen_stages: -1: nothing is frozen; 0: the patch embedding; n: it and the first n stages.
        norm_eval: keep the norm layers in evaluation mode during training.
        with_cp: recompute each block in the backward pass to save memory.
        init_cfg: ``dict(type='Pretrained', checkpoint='flatten_pvt_t.pth')`` loads an official
            classification checkpoint.

    Raises:
        ValueError: for arguments that describe no network.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": _pvt(depths=(2, 2, 2, 2)),
        "small": _pvt(depths=(3, 4, 6, 3)),
        "medium": _pvt(depths=(3, 4, 18, 3)),
        "large": _pvt(depths=(3, 8, 27, 3)),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = "tiny",
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
        with_cp: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(check_frozen_stages(frozen_stages), norm_eval, init_cfg)
        self.arch = arch
        fields = resolve_arch(arch, self.arch_zoo)
        attn_types = check_attn_types(attn_types)
        if len(la_sr_ratios) != len(attn_types):
            raise ValueError(f"la_sr_ratios needs one value a stage; got {la_sr_ratios!r}")
        self.out_indices = check_out_indices(out_indices)
        self.num_stages = self.out_indices[-1] + 1
        self.feature_dims = fields["embed_dims"][: self.num_stages]
        self.grid_sizes = map_sizes(pretrain_img_size)
        drop_paths = drop_path_rates(drop_path_rate, fields["depths"])

        def attention(stage: int) -> nn.Module:
            dim, heads = fields["embed_dims"][stage], fields["num_heads"][stage]
            if attn_types[stage] == "S":
                return SpatialReductionAttention(dim, heads, fields["sr_ratios"][stage], qkv_bias)
            return FocusedLinearAttention(
                dim,
                heads,
                grid_size=self.grid_sizes[stage],
                qkv_bias=qkv_bias,
                fused_qkv=False,
                sr_ratio=la_sr_ratios[stage],
                focusing_factor=focusing_factor,
                kernel_size=kernel_size,
            )

        for stage, rates in enumerate(drop_paths[: self.num_stages]):
            dim = fields["embed_dims"][stage]
            channels = in_channels if stage == 0 else fields["embed_dims"][stage - 1]
            blocks = [
                TransformerBlock(
                    dim,
                    attention(stage),
                    fields["mlp_ratios"][stage],
                    drop_path=rate,
                    norm_eps=1e-6,
                    with_cp=with_cp,
                )
                for rate in rates
            ]
            height, width = self.grid_sizes[stage]
            patch_size = 4 if stage == 0 else 2
            # Numbered attributes, not a ModuleList: these are the official parameter names.
            setattr(self, f"patch_embed{stage + 1}", PatchEmbed(channels, dim, patch_size))
            setattr(
                self, f"pos_embed{stage + 1}", nn.Parameter(torch.zeros(1, height * width, dim))
            )
            setattr(self, f"block{stage + 1}", nn.ModuleList(blocks))
        self._init_from_scratch()
        self.freeze()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> one ``(B, C_i, ceil(H/s), ceil(W/s))`` for each out index."""
        outs = []
        for stage in range(self.num_stages):
            x, hw_shape = getattr(self, f"patch_embed{stage + 1}")(x)
            grid = getattr(self, f"pos_embed{stage + 1}")
            x = x + resize_grid(grid, self.grid_sizes[stage], hw_shape)
            for block in getattr(self, f"block{stage + 1}"):
                x = block(x, hw_shape)
            x = x.transpose(1, 2).unflatten(2, hw_shape)
            if stage in self.out_indices:
                outs.append(x.contiguous())
        return tuple(outs)

    def frozen_modules(self) -> Iterable[nn.Module | nn.Parameter]:
        if self.frozen_stages >= 0:
            yield self.patch_embed1
            yield self.pos_embed1
        for number in range(1, min(self.frozen_stages, self.num_stages) + 1):
            yield getattr(self, f"patch_embed{number}")
            yield getattr(self, f"pos_embed{number}")
            yield getattr(self, f"block{number}")

    def grid_shapes(self) -> dict[str, tuple[int, int]]:
        own = {f"pos_embed{i + 1}": self.grid_sizes[i] for i in range(self.num_stages)}
        return super().grid_shapes() | own

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Drop the final norm, the head and PVT's class token, which is first in ``pos_embed4``."""
        unused = ("norm.", "head.", "cls_token")
        dropped = [n for n in state if n.startswith(unused) or self._is_beyond(n)]
        converted = {name: value for name, value in state.items() if name not in dropped}
        if "cls_token" in state and "pos_embed4" in converted:
            converted["pos_embed4"] = converted["pos_embed4"][:, 1:]
        return converted, dropped

    def _is_beyond(self, name: str) -> bool:
        """Whether a parameter belongs to a stage after the last of ``out_indices``."""
        root = name.split(".")[0]
        numbered = root.startswith(("patch_embed", "pos_embed", "block")) and root[-1].isdigit()
        return numbered and int(root[-1]) > self.num_stages
