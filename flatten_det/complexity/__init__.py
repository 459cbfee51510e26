"""Parameters and multiply-adds of backbones, detectors and segmentors."""

from .counter import Complexity, count_macs
from .models import count_backbone, count_model

__all__ = ["Complexity", "count_backbone", "count_macs", "count_model"]
