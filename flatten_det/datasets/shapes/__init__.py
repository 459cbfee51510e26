"""Shapes: a small data set for detection, instance and semantic segmentation, drawn on first use.

It needs no download, so that a fresh machine can train at once. ``options`` says what is drawn,
``render`` draws one image from ``outlines`` and ``textures``, ``files`` keeps the folder in COCO
layout, and ``detection`` and ``segmentation`` are the MMDetection and MMSegmentation data sets.
"""

from .files import prepare_shapes
from .options import CLASSES, PALETTE, SPLITS, ShapesOptions

__all__ = ["CLASSES", "PALETTE", "SPLITS", "ShapesOptions", "prepare_shapes"]
