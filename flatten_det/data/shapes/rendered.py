"""What the data sets of Shapes have in common: options, and rendering at the first loading."""

from .files import prepare_shapes
from .options import ShapesOptions, check_split


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
