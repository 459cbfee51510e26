"""Shapes as a data set of MMDetection's panoptic segmentation."""

from typing import ClassVar

from mmdet.datasets import CocoPanopticDataset
from mmengine.registry import DATASETS

from .files import image_folder, panoptic_file, panoptic_folder
from .options import CLASSES, PALETTE
from .rendered import RenderedDataset


@DATASETS.register_module()
class ShapesPanopticDataset(RenderedDataset, CocoPanopticDataset):
    """Panoptic masks of Shapes, rendered into ``data_root`` when first loaded.

    The six classes are things, the background is the only stuff. Give
    ``data/shapes/annotations/panoptic_val.json`` and the folder ``data/shapes/val/panoptic`` to
    ``CocoPanopticMetric``. Arguments: see
    :class:`~flatten_det.data.shapes.rendered.RenderedDataset`.
    """

    METAINFO: ClassVar[dict] = {
        "classes": (*CLASSES, "background"),
        "thing_classes": CLASSES,
        "stuff_classes": ("background",),
        "palette": [*PALETTE, (0, 0, 0)],
    }

    @staticmethod
    def file_options(split: str) -> dict:
        """Annotations and folders relative to ``data_root``."""
        return {
            "ann_file": panoptic_file(split),
            "data_prefix": {"img": image_folder(split), "seg": panoptic_folder(split)},
        }
