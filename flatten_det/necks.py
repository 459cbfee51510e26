"""Necks for backbones that have one map only; importing this registers them in ``MODELS``."""

from collections.abc import Mapping, Sequence

from mmengine.registry import MODELS
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from .backbones.weights import ExplainedModule

__all__ = ["SimpleFeaturePyramid"]


@MODELS.register_module()
class SimpleFeaturePyramid(ExplainedModule):
    """ViTDet's pyramid of strides 4, 8, 16, 32 (and coarser) from one map of stride 16 (2203.16527, Sec. 3).

    Each is made from that map alone: by deconvolutions of stride 2 (finer), as it is, or by pooling
    (coarser), then by a 1x1 and a 3x3 convolution, each with a LayerNorm over the channels.

    Args:
        in_channels: C of the map.
        out_channels: C' of all results.
        num_outs: maps to return, at least 4; those after the fourth subsample the last by 2.
        init_cfg: as in mmengine.

    Raises:
        ValueError: for channels that cannot be halved twice, or fewer than four maps.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        num_outs: int = 4,
        init_cfg: Mapping | Sequence[Mapping] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if in_channels < 4 or in_channels % 4:
            raise ValueError(f"in_channels must be a positive multiple of 4; got {in_channels}")
        if num_outs < 4:
            raise ValueError(f"num_outs must be at least 4; got {num_outs}")
        self.num_outs = num_outs
        half, quarter = in_channels // 2, in_channels // 4
        scales = (
            (
                quarter,
                [
                    nn.ConvTranspose2d(in_channels, half, 2, stride=2),
                    LayerNorm2d(half),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, stride=2),
                ],
            ),
            (half, [nn.ConvTranspose2d(in_channels, half, 2, stride=2)]),
            (in_channels, []),
            # An odd map's last row and column are kept: the size is rounded up, as in the backbones.
            (in_channels, [nn.MaxPool2d(2, stride=2, ceil_mode=True)]),
        )
        self.scales = nn.ModuleList(
            nn.Sequential(
                *resample,
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels, resample in scales
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """A tuple of one ``(B, C, H, W)`` -> maps ``(B, C', 4H, 4W)``, ``2H``, ``H``, ``ceil(H/2)``, ….

        Raises:
            ValueError: if there is not one map.
        """
        if len(inputs) != 1:
            raise ValueError(
                f"SimpleFeaturePyramid takes one map of stride 16; got {len(inputs)} maps"
            )
        outs = [scale(inputs[0]) for scale in self.scales]
        while len(outs) < self.num_outs:
            outs.append(max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
