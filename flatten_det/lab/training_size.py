"""The image size that a config is about."""

from mmengine.config import Config

from ..config import datasets_under_test, type_name
from ..data.shapes.options import ShapesOptions
from ..errors import UserError

# Detection papers count at 1280x800, for images of at most 1333x800.
_COUNTED_INSTEAD = {(800, 1333): (800, 1280)}


def training_size(cfg: Config) -> tuple[int, int]:
    """``(H, W)`` in pixels of the images, or crops, that a config trains on.

    Where they vary, it is the size that it tests at, or what papers count it as.

    Raises:
        UserError: the config does not say.
    """
    preprocessor = cfg.model.get("data_preprocessor") or {}
    fixed = [preprocessor, *(preprocessor.get("batch_augments") or ())]
    size = next((part["size"] for part in fixed if part.get("size")), None)
    if size is None:
        dataset = datasets_under_test(cfg)[0] if cfg.get("test_dataloader") else {}
        scales = (
            step["scale"]
            for step in dataset.get("pipeline", ())
            if type_name(step) == "Resize" and "scale" in step
        )
        scale = next(scales, None)
        if scale is None and "image_size" in dataset:  # Shapes, as it was rendered.
            return ShapesOptions.taken_from(dict(dataset)).image_size_range[1]
        if scale is None:
            raise UserError(
                f"config file {cfg.filename}: no image size, neither in data_preprocessor nor in a Resize "
                "of the test pipeline: add one, or give tools/get_flops.py --shape H W"
            )
        size = (min(scale), max(scale))
    return _COUNTED_INSTEAD.get(tuple(size), tuple(size))
