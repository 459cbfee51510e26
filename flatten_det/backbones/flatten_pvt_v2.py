"""FLatten-PVTv2, and PVTv2 itself as its softmax baseline."""

from typing import ClassVar

from mmengine.registry import MODELS
from torch import Tensor, nn

from ..attention.layer_norm import layer_norm
from .flatten_pvt import PVTFamily, pvt_fields


@MODELS.register_module()
class FLattenPVTv2(PVTFamily):
    """PVTv2 with focused linear attention (arXiv 2308.00442; PVTv2: 2106.13797).

    Other than PVT it has overlapping patches, a depthwise convolution in the MLPs, no position
    embeddings, and a LayerNorm after each stage (``norm1`` … ``norm4``), through which the next one
    goes too. For the arguments see :class:`.flatten_pvt.PVTFamily`.
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
