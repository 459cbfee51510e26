"""Backbones of the FLatten Transformer; importing this registers them in mmengine's ``MODELS``."""

from .flatten_pvt import FLattenPVT
from .flatten_swin import FLattenSwin

__all__ = ["FLattenPVT", "FLattenSwin"]
