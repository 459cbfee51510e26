"""Backbones of all families that are small enough for tests."""

import torch
from mmengine.registry import MODELS
from torch import nn

import flatten_det  # noqa: F401  registers the backbones

NANO = {
    "FLattenPVT": dict(embed_dims=(16, 32, 48, 64), num_heads=(1, 2, 3, 4), depths=(2, 1, 1, 1)),
    "FLattenPVTv2": dict(embed_dims=(16, 32, 32, 32), num_heads=(1, 2, 2, 2), depths=(2, 1, 1, 1)),
    "FLattenSwin": dict(embed_dims=16, depths=(2, 1, 2, 1), num_heads=(1, 2, 4, 8)),
    "FLattenCSwin": dict(embed_dims=16, depths=(2, 1, 2, 1), num_heads=(2, 2, 4, 8)),
}
DEIT = dict(embed_dims=(32,), num_heads=(2,), mlp_ratios=(2,), depths=(2,))
ARCHS = NANO | {"FLattenDeiT": DEIT}
# Each family with linear attention alone, with both, and with softmax alone.
KINDS = [(family, types) for family in NANO for types in ("LLLL", "LLSS", "SSSS")]
KINDS += [("FLattenDeiT", "L"), ("FLattenDeiT", "S")]


def build_nano(family: str, attn_types: str | None = None, **options) -> nn.Module:
    """With no parameter left at zero or one; DeiT's stage is as the last of ``attn_types``."""
    torch.manual_seed(0)
    config = dict(type=family, arch=ARCHS[family])
    if attn_types:
        config["attn_types"] = attn_types[-1] if family == "FLattenDeiT" else attn_types
    model = MODELS.build(config | options)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 2)
        elif parameter.dim() < 2 or "pos" in name or name.endswith("scale"):
            nn.init.normal_(parameter, std=0.3)
    return model
