"""Shapes as data sets of MMDetection and MMSegmentation, rendered at the first loading."""

from typing import ClassVar

from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from .files import (
    annotation_file,
    image_folder,
    panoptic_file,
    panoptic_folder,
    prepare_shapes,
    semantic_folder,
)
from .options import CLASSES, PALETTE, ShapesOptions, check_split


class RenderedDataset:
    """Comes before the framework's data set among the base classes.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: Folder of the data set, shared by all data sets with the same options.
        image_size, num_images, seed, object_size, objects_per_image, min_visible, texture_contrast,
            legend, legend_classes, legend_distance: See
            :class:`~flatten_det.data.shapes.options.ShapesOptions`.
        **kwargs: As for the framework's data set (``pipeline``, ``test_mode``, ``indices``,
            ``filter_cfg``, ...), except what names files, which follows from ``split``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, split: str = "train", data_root: str = "data/shapes", **kwargs):
        check_split(split)
        self.options = ShapesOptions.taken_from(kwargs)
        super().__init__(data_root=data_root, **self.file_options(split), **kwargs)

    @staticmethod
    def file_options(split: str) -> dict:
        """The arguments of the framework's data set that name a split's files."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict]:
        """Render the data set if needed, and load it as the framework does."""
        self.prepare()
        return super().load_data_list()

    def prepare(self) -> None:
        """Render the data set if needed, see :func:`~flatten_det.data.shapes.files.prepare_shapes`."""
        prepare_shapes(self.data_root, self.options)


@DATASETS.register_module()
class ShapesDetDataset(RenderedDataset, CocoDataset):
    """Boxes and instance masks of Shapes, rendered into ``data_root`` when first loaded.

    The annotations are COCO files: give ``data/shapes/annotations/instances_val.json`` to
    ``CocoMetric``. The semantic masks are PNG files with a palette:
    ``LoadAnnotations(with_seg=True)`` needs ``imdecode_backend='pillow'``. Arguments: see
    :class:`~flatten_det.data.shapes.datasets.RenderedDataset`.
    """

    METAINFO: ClassVar[dict] = {"classes": CLASSES, "palette": list(PALETTE)}

    @staticmethod
    def file_options(split: str) -> dict:
        """Annotations and folders relative to ``data_root``."""
        return {
            "ann_file": annotation_file(split),
            "data_prefix": {"img": image_folder(split), "seg": semantic_folder(split)},
        }


@DATASETS.register_module()
class ShapesPanopticDataset(RenderedDataset, CocoPanopticDataset):
    """Panoptic masks of Shapes, rendered into ``data_root`` when first loaded.

    The six classes are things, the background is the only stuff. Give
    ``data/shapes/annotations/panoptic_val.json`` and the folder ``data/shapes/val/panoptic`` to
    ``CocoPanopticMetric``. Arguments: see
    :class:`~flatten_det.data.shapes.datasets.RenderedDataset`.
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


@DATASETS.register_module()
class ShapesSegDataset(RenderedDataset, BaseSegDataset):
    """Semantic masks of Shapes, rendered into ``data_root`` when first loaded.

    Class 0 is the background, so ``reduce_zero_label`` stays False. Arguments: see
    :class:`~flatten_det.data.shapes.datasets.RenderedDataset`.
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
