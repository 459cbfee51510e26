"""Data sets. Each one is registered if its framework, MMDetection or MMSegmentation, is there."""

from importlib.util import find_spec

__all__ = []

if find_spec("mmdet") is not None:
    from .shapes.datasets import ShapesDetDataset, ShapesPanopticDataset

    __all__ += ["ShapesDetDataset", "ShapesPanopticDataset"]

if find_spec("mmseg") is not None:
    from .shapes.datasets import ShapesSegDataset

    __all__ += ["ShapesSegDataset"]

del find_spec
