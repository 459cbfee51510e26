"""FLatten-PVT and FLatten-PVTv2, and PVT and PVTv2 themselves as their softmax baselines."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..attention.layer_norm import layer_norm
from ..attention.maps import Padding, resize_grid, resize_grid_to_each
from ..attention.tiles import GridRows, tiles
from .base import PyramidBackbone
from .options import check_options
from .softmax_attention import SpatialReductionAttention


class PVTFamily(PyramidBackbone):
    """Base of PVT and PVTv2.

    Args:
        arch: a name in ``arch_zoo`` (None: the smallest), or a dict that changes single fields
            (``embed_dims, num_heads, mlp_ratios, depths``, four values each, and ``sr_ratios`` of the
            softmax stages) of ``base`` (default: the smallest).
        out_indices, attn_types, options: see :class:`.base.DenseBackbone`; the softmax attention is that
            with spatially reduced keys and values.
        la_sr_ratios: spatial reduction of keys and values in the linear stages (the original: none).
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | None = None,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        attn_types: Sequence[str] = ("L", "L", "L", "L"),
        la_sr_ratios: Sequence[int] = (1, 1, 1, 1),
        **options: Any,
    ) -> None:
        check_options(dict(la_sr_ratios=la_sr_ratios))
        arch = next(iter(self.arch_zoo)) if arch is None else arch
        super().__init__(arch, attn_types, out_indices, **options)
        self.la_sr_ratios = la_sr_ratios
        self.add_stages(self.fields["mlp_ratios"])
        self.add_own_parameters()
        self.finish()

    def make_attention(self, stage: int, index: int) -> nn.Module:
        if self.attn_types[stage] == "L":
            return self.linear_attention(stage, fused_qkv=False, sr_ratio=self.la_sr_ratios[stage])
        heads, ratio = self.fields["num_heads"][stage], self.fields["sr_ratios"][stage]
        return SpatialReductionAttention(self.feature_dims[stage], heads, ratio, self.qkv_bias)

    def add_own_parameters(self) -> None:
        """Add what only this member of the family has to its stages."""
        raise NotImplementedError

    @property
    def knows_padding(self) -> bool:
        return all(layer.takes_padding for layer in self.linear_layers())


def pvt_fields(*depths: int, **changes: Any) -> dict[str, Any]:
    """Of an architecture of PVT, with changes to what its larger ones have."""
    usual = dict(embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8), mlp_ratios=(8, 8, 4, 4))
    return usual | dict(depths=depths, sr_ratios=(8, 4, 2, 1)) | changes


@MODELS.register_module()
class FLattenPVT(PVTFamily):
    """Pyramid Vision Transformer with focused linear attention (arXiv 2308.00442; PVT: 2102.12122).

    As in PVT's detection code, the maps are returned without a norm. For the arguments see
    :class:`PVTFamily`.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": pvt_fields(2, 2, 2, 2),
        "small": pvt_fields(3, 4, 6, 3),
        "medium": pvt_fields(3, 4, 18, 3),
        "large": pvt_fields(3, 8, 27, 3),
    }
    patches = ((4,), (2,))

    def add_own_parameters(self) -> None:
        for stage, dim in enumerate(self.feature_dims):
            height, width = self.grid_sizes[stage]
            grid = nn.Parameter(torch.zeros(1, height * width, dim))
            setattr(self, f"pos_embed{stage + 1}", grid)

    def before_blocks(
        self,
        stage: int,
        x: Tensor,
        hw_shape: tuple[int, int],
        inplace: bool,
        padding: Padding | None,
    ) -> Tensor:
        grid, from_hw = getattr(self, f"pos_embed{stage + 1}"), self.grid_sizes[stage]
        if padding is not None:
            return x + resize_grid_to_each(grid, padding)
        is_exact = x.dtype == grid.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (inplace and is_exact and x.is_contiguous()):
            return x + resize_grid(grid, from_hw, hw_shape)
        # As large as x itself: by rows there is no fresh memory to fill.
        positions = GridRows(grid, from_hw, hw_shape)
        for tile in list(tiles(len(x), hw_shape, x.shape[-1])):
            for tokens in x[tile.batch, tile.tokens]:
                positions.add_to(tokens, tile.rows)
        return x

    def grid_shapes(self) -> dict[str, tuple[int, int]]:
        own = {f"pos_embed{i + 1}": self.grid_sizes[i] for i in range(self.num_stages)}
        return super().grid_shapes() | own

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """PVT's class token is first in ``pos_embed4``."""
        converted, dropped = super().convert_official(state)
        grid = converted.get("pos_embed4")
        # Of another shape it is damaged, and named when the shapes are compared.
        if "cls_token" in state and grid is not None and grid.dim() == 3:
            converted["pos_embed4"] = grid[:, 1:]
        return converted, dropped

    def own_name(self, name: str) -> str | None:
        return None if name.startswith(("norm.", "head.", "cls_token")) else name


@MODELS.register_module()
class FLattenPVTv2(PVTFamily):
    """PVTv2 with focused linear attention (arXiv 2308.00442; PVTv2: 2106.13797).

    Other than PVT it has overlapping patches, a depthwise convolution in the MLPs, no position
    embeddings, and a LayerNorm after each stage (``norm1`` … ``norm4``), through which the next one
    goes too. For the arguments see :class:`PVTFamily`.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "b0": pvt_fields(2, 2, 2, 2, embed_dims=(32, 64, 160, 256)),
        "b1": pvt_fields(2, 2, 2, 2),
        "b2": pvt_fields(3, 4, 6, 3),
        "b3": pvt_fields(3, 4, 18, 3),
        "b4": pvt_fields(3, 8, 27, 3),
        "b5": pvt_fields(3, 6, 40, 3, mlp_ratios=(4, 4, 4, 4)),
    }
    mlp_conv = True
    patches = ((4, 7, 3), (2, 3, 1))

    def add_own_parameters(self) -> None:
        for stage, dim in enumerate(self.feature_dims):
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(dim, eps=1e-6))

    def after_blocks(self, stage: int, x: Tensor) -> Tensor:
        return layer_norm(x, getattr(self, f"norm{stage + 1}"))

    def own_name(self, name: str) -> str | None:
        """The convolutions of the MLPs lose a level of their names."""
        return super().own_name(name.replace(".dwconv.dwconv.", ".dwconv."))
