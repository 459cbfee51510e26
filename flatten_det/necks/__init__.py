"""Necks for backbones that have one map only; importing this registers them in ``MODELS``."""

from .simple_feature_pyramid import SimpleFeaturePyramid

__all__ = ["SimpleFeaturePyramid"]
