"""Shapes as a data set of MMDetection."""

from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from .files import annotation_file, image_folder, semantic_folder
from .options import CLASSES, PALETTE
from .rendered import RenderedDataset


@DATASETS.register_module()
class ShapesDetDataset(RenderedDataset, CocoDataset):
    """Boxes and instance masks of Shapes, rendered into ``data_root`` when first loaded.

    The annotations are COCO files: give ``data/shapes/annotations/instances_val.json`` to
    ``CocoMetric``. The semantic masks are PNG files with a palette:
    ``LoadAnnotations(with_seg=True)`` needs ``imdecode_backend='pillow'``. Arguments: see
    :class:`~flatten_det.data.shapes.rendered.RenderedDataset`.
    """

    METAINFO: ClassVar[dict] = {"classes": CLASSES, "palette": list(PALETTE)}

    @staticmethod
    def file_options(split: str) -> dict:
        """Annotations and folders relative to ``data_root``."""
        return {
            "ann_file": annotation_file(split),
            "data_prefix": {"img": image_folder(split), "seg": semantic_folder(split)},
        }
