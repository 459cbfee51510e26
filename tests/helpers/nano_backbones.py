"""Architectures of all families that are small enough for tests of whole backbones."""

import torch
from mmengine.registry import MODELS
from torch import nn

NANO = {
    "FLattenPVT": dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), depths=(2, 1, 1, 1)),
    "FLattenPVTv2": dict(embed_dims=(16, 32, 32, 32), num_heads=(1, 2, 2, 2), depths=(2, 1, 1, 1)),
    "FLattenSwin": dict(embed_dims=16, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8)),
    "FLattenCSwin": dict(embed_dims=16, depths=(2, 1, 2, 1), num_heads=(2, 2, 4, 8)),
}
DEIT = dict(embed_dims=(32,), num_heads=(2,), mlp_ratios=(2,), depths=(2,))


def build_nano(family: str, **options) -> nn.Module:
    """For inference, with the same weights each time."""
    torch.manual_seed(0)
    return MODELS.build(dict(type=family, arch=NANO[family], **options)).eval()
