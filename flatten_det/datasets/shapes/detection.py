"""Shapes as a data set of MMDetection."""

from typing import ClassVar

from mmdet.datasets import CocoDataset
from mmengine.registry import DATASETS

from .files import annotation_file, image_folder, prepare_shapes, semantic_folder
from .options import CLASSES, PALETTE, ShapesOptions, check_split


@DATASETS.register_module()
class ShapesDetDataset(CocoDataset):
    """Boxes and instance masks of Shapes, rendered into ``data_root`` when first loaded.

    The annotations are COCO files: give
    ``data/shapes/annotations/instances_val.json`` to ``CocoMetric``. The semantic masks are PNG
    files with a palette: ``LoadAnnotations(with_seg=True)`` needs ``imdecode_backend='pillow'``.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: Folder of the data set, shared by all data sets with the same options.
        image_size, num_images, seed, object_size, objects_per_image, min_visible, texture_contrast:
            See :class:`~flatten_det.datasets.shapes.options.ShapesOptions`.
        **kwargs: As for ``CocoDataset`` (``pipeline``, ``test_mode``, ``filter_cfg``, ...),
            except ``ann_file`` and ``data_prefix``, which follow from ``split``.

    Raises:
        ValueError: An option is out of range.
    """

    METAINFO: ClassVar[dict] = {"classes": CLASSES, "palette": list(PALETTE)}

    def __init__(self, split: str = "train", data_root: str = "data/shapes", **kwargs):
        check_split(split)
        self.options = ShapesOptions.taken_from(kwargs)
        super().__init__(
            ann_file=annotation_file(split),
            data_root=data_root,
            data_prefix={"img": image_folder(split), "seg": semantic_folder(split)},
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Render the data set if needed and load the annotations as ``CocoDataset`` does."""
        prepare_shapes(self.data_root, self.options)
        return super().load_data_list()
