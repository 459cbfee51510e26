"""FLatten-PVT, and PVT itself as its softmax baseline."""

from typing import ClassVar

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..attention.maps import GridRows, Padding, resize_grid, resize_grid_to_each
from .in_place import row_portions
from .patch_embed import PatchEmbed
from .pvt_family import PVTFamily


def _pvt(depths: tuple[int, ...]) -> dict:
    return {
        "embed_dims": (64, 128, 320, 512),
        "num_heads": (1, 2, 5, 8),
        "mlp_ratios": (8, 8, 4, 4),
        "depths": depths,
        "sr_ratios": (8, 4, 2, 1),
    }


@MODELS.register_module()
class FLattenPVT(PVTFamily):
    """Pyramid Vision Transformer with focused linear attention (arXiv 2308.00442; PVT: 2102.12122).

    As in PVT's detection code, the maps are returned without a norm.

    The architectures are ``'tiny'``, ``'small'``, ``'medium'`` and ``'large'``; for the arguments see
    :class:`~flatten_det.backbones.pvt_family.PVTFamily`.
    """

    arch_zoo: ClassVar[dict[str, dict]] = {
        "tiny": _pvt(depths=(2, 2, 2, 2)),
        "small": _pvt(depths=(3, 4, 6, 3)),
        "medium": _pvt(depths=(3, 4, 18, 3)),
        "large": _pvt(depths=(3, 8, 27, 3)),
    }

    mlp_conv = False

    @staticmethod
    def make_patch_embed(stage: int, in_channels: int, embed_dims: int) -> PatchEmbed:
        return PatchEmbed(in_channels, embed_dims, stride=2 if stage else 4)

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
        is_exact = grid.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not (inplace and is_exact and x.dtype == torch.float32 and x.is_contiguous()):
            return x + resize_grid(grid, from_hw, hw_shape)
        # As large as x itself: by rows there is no fresh memory to fill.
        positions = GridRows(grid, from_hw, hw_shape)
        for rows in row_portions(hw_shape, x.shape[-1]):
            for tokens in x[:, rows.start * hw_shape[1] : rows.stop * hw_shape[1]]:
                positions.add_to(tokens, rows)
        return x

    def grid_shapes(self) -> dict[str, tuple[int, int]]:
        own = {f"pos_embed{i + 1}": self.grid_sizes[i] for i in range(self.num_stages)}
        return super().grid_shapes() | own

    def convert_official(self, state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Drop the final norm, the head and PVT's class token, which is first in ``pos_embed4``."""
        unused = ("norm.", "head.", "cls_token")
        dropped = [n for n in state if n.startswith(unused) or self.is_beyond(n)]
        converted = {name: value for name, value in state.items() if name not in dropped}
        grid = converted.get("pos_embed4")
        # Of another shape it is damaged, and named when the shapes are compared.
        if "cls_token" in state and grid is not None and grid.dim() == 3:
            converted["pos_embed4"] = grid[:, 1:]
        return converted, dropped
