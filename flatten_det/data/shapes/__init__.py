"""Shapes: a small data set for detection, instance, semantic and panoptic segmentation.

It is drawn on first use and needs no download, so that a fresh machine can train at once. ``options``
says what is drawn, ``render`` draws one image from ``outlines``, ``textures`` and ``legend``,
``annotations`` describes it, ``files`` keeps the folder in COCO layout, ``detection`` and ``panoptic``
are the data sets for MMDetection, and ``segmentation`` is the one for MMSegmentation.
"""

from .files import prepare_shapes
from .options import CLASSES, PALETTE, SPLITS, ShapesOptions

__all__ = ["CLASSES", "PALETTE", "SPLITS", "ShapesOptions", "prepare_shapes"]
