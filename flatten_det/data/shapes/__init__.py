"""Shapes: a small data set for detection, instance, semantic and panoptic segmentation.

It is drawn on first use and needs no download, so that a fresh machine can train at once. ``options`` says
what is drawn, ``render`` draws one image, ``files`` keeps the folder in COCO's layout, and ``datasets`` are
those for MMDetection and MMSegmentation.
"""

from .files import prepare_shapes
from .options import CLASSES, PALETTE, SPLITS, ShapesOptions

__all__ = ["CLASSES", "PALETTE", "SPLITS", "ShapesOptions", "prepare_shapes"]
