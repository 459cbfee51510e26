"""Backbones of the FLatten Transformer; importing this registers them in mmengine's ``MODELS``."""

from .base import use_cuda_graphs
from .flatten_cswin import FLattenCSwin
from .flatten_deit import FLattenDeiT
from .flatten_pvt import FLattenPVT, FLattenPVTv2
from .flatten_swin import FLattenSwin
from .options import BACKBONES, backbone_config, build_backbone

__all__ = [
    "BACKBONES",
    "FLattenCSwin",
    "FLattenDeiT",
    "FLattenPVT",
    "FLattenPVTv2",
    "FLattenSwin",
    "backbone_config",
    "build_backbone",
    "use_cuda_graphs",
]
