"""Shapes as data sets of MMDetection and MMSegmentation, of those that are installed."""

from importlib.util import find_spec
from typing import ClassVar

from mmengine.registry import DATASETS

from .files import prepare_shapes
from .options import CLASSES, PALETTE, ShapesOptions, check_split


class RenderedDataset:
    """Options and rendering at the first loading; comes before the framework's data set among the bases.

    Args:
        split: ``'train'`` or ``'val'``.
        data_root: Folder of the data set, shared by all data sets with the same options.
        **kwargs: Options of :class:`~flatten_det.data.shapes.options.ShapesOptions`, and those of the
            framework's data set (``pipeline``, ``test_mode``, ``indices``, ``filter_cfg``, ...), except
            what names files, which follows from ``split``.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, split: str = "train", data_root: str = "data/shapes", **kwargs):
        check_split(split)
        self.options = ShapesOptions.taken_from(kwargs)
        super().__init__(data_root=data_root, **self.file_options(split), **kwargs)

    @staticmethod
    def file_options(split: str) -> dict:
        """The arguments of the framework's data set that name a split's files, below ``data_root``."""
        raise NotImplementedError

    def load_data_list(self) -> list[dict]:
        """Render the data set if needed, and load it as the framework does."""
        self.prepare()
        return super().load_data_list()

    def prepare(self) -> None:
        """Render the data set if needed, see :func:`~flatten_det.data.shapes.files.prepare_shapes`."""
        prepare_shapes(self.data_root, self.options)


if find_spec("mmdet") is not None:
    from mmdet.datasets import CocoDataset, CocoPanopticDataset

    @DATASETS.register_module()
    class ShapesDetDataset(RenderedDataset, CocoDataset):
        """Boxes and instance masks of Shapes, for MMDetection; arguments: :class:`RenderedDataset`.

        Give ``data/shapes/annotations/instances_val.json`` to ``CocoMetric``. The semantic masks are PNG
        files with a palette: ``LoadAnnotations(with_seg=True)`` needs ``imdecode_backend='pillow'``.
        """

        METAINFO: ClassVar[dict] = {"classes": CLASSES, "palette": list(PALETTE)}

        @staticmethod
        def file_options(split: str) -> dict:
            """Annotations and folders."""
            folders = {"img": f"{split}/images", "seg": f"{split}/semantic"}
            return {"ann_file": f"annotations/instances_{split}.json", "data_prefix": folders}

    @DATASETS.register_module()
    class ShapesPanopticDataset(RenderedDataset, CocoPanopticDataset):
        """Panoptic masks of Shapes, for MMDetection; arguments: :class:`RenderedDataset`.

        Six classes are things; stuff is the background alone. Give
        ``data/shapes/annotations/panoptic_val.json`` and the folder ``data/shapes/val/panoptic`` to
        ``CocoPanopticMetric``.
        """

        METAINFO: ClassVar[dict] = {
            "classes": (*CLASSES, "background"),
            "thing_classes": CLASSES,
            "stuff_classes": ("background",),
            "palette": [*PALETTE, (0, 0, 0)],
        }

        @staticmethod
        def file_options(split: str) -> dict:
            """Annotations and folders."""
            folders = {"img": f"{split}/images", "seg": f"{split}/panoptic"}
            return {"ann_file": f"annotations/panoptic_{split}.json", "data_prefix": folders}


if find_spec("mmseg") is not None:
    from mmseg.datasets import BaseSegDataset

    @DATASETS.register_module()
    class ShapesSegDataset(RenderedDataset, BaseSegDataset):
        """Semantic masks of Shapes, for MMSegmentation; arguments: :class:`RenderedDataset`.

        Class 0 is the background, so ``reduce_zero_label`` stays False.
        """

        METAINFO: ClassVar[dict] = {
            "classes": ("background", *CLASSES),
            "palette": [(0, 0, 0), *PALETTE],
        }

        @staticmethod
        def file_options(split: str) -> dict:
            """Folders, and suffixes."""
            folders = {"img_path": f"{split}/images", "seg_map_path": f"{split}/semantic"}
            return {"img_suffix": ".jpg", "seg_map_suffix": ".png", "data_prefix": folders}
