"""Shapes as a data set of MMSegmentation."""

from typing import ClassVar

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset

from .files import image_folder, prepare_shapes, semantic_folder
from .options import CLASSES, PALETTE, ShapesOptions, check_split


@DATASETS.register_module()
class ShapesSegDataset(BaseSegDataset):
    """Semantic masks of Shapes, rendered into ``data_root`` when first loaded.

    Class 0 is the background, so ``reduce_zero_label`` stays False.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: Folder of the data set, shared by all data sets with the same options.
        image_size, num_images, seed, object_size, objects_per_image, min_visible, texture_contrast:
            See :class:`~flatten_det.datasets.shapes.options.ShapesOptions`.
        **kwargs: As for ``BaseSegDataset`` (``pipeline``, ``test_mode``, ``indices``, ...),
            except ``ann_file``, ``data_prefix`` and the suffixes, which follow from ``split``.

    Raises:
        ValueError: An option is out of range.
    """

    METAINFO: ClassVar[dict] = {
        "classes": ("background", *CLASSES),
        "palette": [(0, 0, 0), *PALETTE],
    }

    def __init__(self, split: str = "train", data_root: str = "data/shapes", **kwargs):
        check_split(split)
        self.options = ShapesOptions.taken_from(kwargs)
        super().__init__(
            img_suffix=".jpg",
            seg_map_suffix=".png",
            data_root=data_root,
            data_prefix={"img_path": image_folder(split), "seg_map_path": semantic_folder(split)},
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Render the data set if needed and list its images as ``BaseSegDataset`` does."""
        prepare_shapes(self.data_root, self.options)
        return super().load_data_list()
