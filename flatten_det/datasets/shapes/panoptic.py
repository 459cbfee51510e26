"""Shapes as a data set of MMDetection's panoptic segmentation."""

from typing import ClassVar

from mmdet.datasets import CocoPanopticDataset
from mmengine.registry import DATASETS

from .files import image_folder, panoptic_file, panoptic_folder, prepare_shapes
from .options import CLASSES, PALETTE, ShapesOptions, check_split


@DATASETS.register_module()
class ShapesPanopticDataset(CocoPanopticDataset):
    """Panoptic masks of Shapes, rendered into ``data_root`` when first loaded.

    The six classes are things, the background is the only stuff. Give
    ``data/shapes/annotations/panoptic_val.json`` and the folder ``data/shapes/val/panoptic`` to
    ``CocoPanopticMetric``.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: Folder of the data set, shared by all data sets with the same options.
        image_size, num_images, seed, object_size, objects_per_image, min_visible, texture_contrast:
            See :class:`~flatten_det.datasets.shapes.options.ShapesOptions`.
        **kwargs: As for ``CocoPanopticDataset`` (``pipeline``, ``test_mode``, ``filter_cfg``, ...),
            except ``ann_file`` and ``data_prefix``, which follow from ``split``.

    Raises:
        ValueError: An option is out of range.
    """

    METAINFO: ClassVar[dict] = {
        "classes": (*CLASSES, "background"),
        "thing_classes": CLASSES,
        "stuff_classes": ("background",),
        "palette": [*PALETTE, (0, 0, 0)],
    }

    def __init__(self, split: str = "train", data_root: str = "data/shapes", **kwargs):
        check_split(split)
        self.options = ShapesOptions.taken_from(kwargs)
        super().__init__(
            ann_file=panoptic_file(split),
            data_root=data_root,
            data_prefix={"img": image_folder(split), "seg": panoptic_folder(split)},
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Render the data set if needed and load the annotations as ``CocoPanopticDataset`` does."""
        prepare_shapes(self.data_root, self.options)
        return super().load_data_list()
