"""Shapes as a data set of MMSegmentation."""

from typing import ClassVar

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from .files import image_folder, semantic_folder
from .options import CLASSES, PALETTE
from .rendered import RenderedDataset


@DATASETS.register_module()
class ShapesSegDataset(RenderedDataset, BaseSegDataset):
    """Semantic masks of Shapes, rendered into ``data_root`` when first loaded.

    Class 0 is the background, so ``reduce_zero_label`` stays False. Arguments: see
    :class:`~flatten_det.data.shapes.rendered.RenderedDataset`.
    """

    METAINFO: ClassVar[dict] = {
        "classes": ("background", *CLASSES),
        "palette": [(0, 0, 0), *PALETTE],
    }

    @staticmethod
    def file_options(split: str) -> dict:
        """Folders relative to ``data_root``, and suffixes."""
        return {
            "img_suffix": ".jpg",
            "seg_map_suffix": ".png",
            "data_prefix": {
                "img_path": image_folder(split),
                "seg_map_path": semantic_folder(split),
            },
        }
