"""Name the image file behind a failing data pipeline."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from PIL import Image

from .errors import UserError

_READ_FROM = {"img_path": cv2.IMREAD_COLOR, "seg_map_path": cv2.IMREAD_UNCHANGED}


class ImageError(UserError):
    """An image or label map that is missing or cannot be decoded."""


def decodes(content: bytes, flag: int = cv2.IMREAD_COLOR) -> bool:
    """Whether OpenCV, with which the pipelines read, makes an image of a file's content.

    Args:
        content: of the file.
        flag: how it is read, such as ``cv2.IMREAD_UNCHANGED`` for a label map.
    """
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag) is not None
    except cv2.error:
        return False


def image_error(path: str | Path, flag: int = cv2.IMREAD_COLOR) -> str | None:
    """Say in one line why an image or label map cannot be decoded; None if it can.

    Args:
        path: of the file.
        flag: how OpenCV would read it.
    """
    path = Path(path)
    if not path.is_file():
        return f"image {path} not found: check the data folder"
    content = path.read_bytes()
    try:
        # What is too large for Pillow's taste is not broken.
        with contextlib.suppress(Image.DecompressionBombError), Image.open(path) as image:
            image.load()
        readable = decodes(content, flag)
    except Exception:
        # Decoders of damaged content raise anything: OSError, SyntaxError, struct.error, ...
        readable = False
    if readable:
        return None
    return f"image {path} cannot be decoded ({len(content)} bytes): get the file again or remove it"


class CheckedPipeline(Compose):
    """A data pipeline whose failures on a broken image name the file.

    The readers report a broken file as a failed assertion, an OpenCV or a Pillow error, mostly
    without its name. So, after a failure only, the sample's files are looked at.
    """

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Run the transforms.

        Raises:
            ImageError: The failure comes with an image or label map that cannot be decoded.
        """
        # The transforms may replace these, or, with mosaics, hand on another sample's.
        paths = [(data[key], flag) for key, flag in _READ_FROM.items() if data.get(key)]
        try:
            return super().__call__(data)
        except Exception as error:
            for path, flag in paths:
                reason = "://" not in str(path) and image_error(path, flag)
                if reason:
                    raise ImageError(reason) from error
            if "img_path" in data and _no_pixels_are_left(error):
                raise ImageError(
                    f"image {data['img_path']} is too narrow: resized as the config says, no pixels are "
                    "left of it: remove it"
                ) from error
            raise


def _no_pixels_are_left(error: Exception) -> bool:
    return isinstance(error, cv2.error) and error.func == "resize" and "inv_scale" in error.err


class CheckImagesHook(Hook):
    """Puts a :class:`CheckedPipeline` into every data set, before workers copy it."""

    def before_train_epoch(self, runner) -> None:
        """Check the training images."""
        _check_images(runner.train_dataloader.dataset)

    def before_val_epoch(self, runner) -> None:
        """Check the validation images."""
        _check_images(runner.val_dataloader.dataset)

    def before_test_epoch(self, runner) -> None:
        """Check the test images."""
        _check_images(runner.test_dataloader.dataset)


def _check_images(dataset: Any) -> None:
    for inner in _unwrap(dataset):
        pipeline = getattr(inner, "pipeline", None)
        if type(pipeline) is Compose:
            inner.pipeline = CheckedPipeline(pipeline.transforms)


def _unwrap(dataset: Any) -> Iterator[Any]:
    """The data sets inside ConcatDataset, RepeatDataset, MultiImageMixDataset and the like."""
    yield dataset
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for child in inner:
        if child is not None:
            yield from _unwrap(child)
