"""Keep a data pipeline from files that it must not open, and name the image behind its failures."""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from PIL import Image, UnidentifiedImageError

from ..datasets.coco_values import is_size
from ..image_files import FORMATS, decoded, pixel_limit, set_pixel_limit, why_not_decoded
from .errors import UserError

_READ_FROM = {
    "img_path": cv2.IMREAD_COLOR,
    "img_path2": cv2.IMREAD_COLOR,
    "seg_map_path": cv2.IMREAD_UNCHANGED,
    "depth_map_path": cv2.IMREAD_UNCHANGED,
}


class ImageError(UserError):
    """An image or label map that is missing or cannot be decoded."""


def image_error(path: str | Path, flag: int = cv2.IMREAD_COLOR) -> str | None:
    """Say in one line why an image or label map cannot, or must not, be decoded; None if it can.

    Args:
        path: of the file.
        flag: how OpenCV would read it.
    """
    path = Path(path)
    if refusal := why_not_decoded(path):
        return refusal
    if not path.is_file():
        return f"image {path} not found: {_why_missing(path)}"
    content = path.read_bytes()
    try:
        # What OpenCV alone knows is not broken.
        with (
            contextlib.suppress(UnidentifiedImageError),
            Image.open(path, formats=FORMATS) as image,
        ):
            image.load()
        readable = decoded(content, flag) is not None
    except Exception:
        # Decoders of damaged content raise anything: OSError, SyntaxError, struct.error, ...
        readable = False
    if readable:
        return None
    return f"image {path} cannot be decoded ({len(content)} bytes): get the file again or remove it"


def _why_missing(path: Path) -> str:
    if "\\" in path.name:
        return "write / instead of \\ in the annotations"
    if "\ufeff" in str(path):
        return "the list of images begins with a byte order mark: save it as UTF-8 without one"
    if path.name.startswith(".") and not path.suffix:
        return "remove the blank line from the list of images"
    return "check the data folder"


class CheckedPipeline(Compose):
    """A data pipeline for files that nobody has looked at yet.

    It opens no file outside of the data's folders, none that is far too large, and none that is a
    program. Its failures on a broken image name the file: the readers report a broken file as a failed
    assertion, an OpenCV or a Pillow error, mostly without its name, so, after a failure, the sample's
    files are looked at.

    Args:
        transforms: as for :class:`mmengine.dataset.Compose`.
        max_pixels: of an image, a label map or a mask, see :func:`~flatten_det.image_files.pixel_limit`;
            None: Pillow's limit.
        folders: where images and label maps must lie; none: anywhere.
    """

    def __init__(
        self, transforms: Sequence, max_pixels: int | None = None, folders: Sequence[str] = ()
    ) -> None:
        super().__init__(transforms)
        self._max_pixels = 2 * Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        self._folders = [os.path.abspath(folder) for folder in folders]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Run the transforms.

        Raises:
            ImageError: An image or label map lies elsewhere, is too large or is a program; or the
                failure comes with one that cannot be decoded.
        """
        set_pixel_limit(self._max_pixels)  # Here: a data worker need not inherit it.
        # The transforms may replace these, or, with mosaics, hand on another sample's.
        paths = [(data[key], flag) for key, flag in _READ_FROM.items() if data.get(key)]
        for path, _ in paths:
            if refusal := _why_not_opened(str(path), self._folders):
                raise ImageError(refusal)
        if refusal := self._mask_refusal(data):
            raise ImageError(f"image {data.get('img_path')}: {refusal}")
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

    def _mask_refusal(self, data: dict[str, Any]) -> str | None:
        """Run lengths state the size of the mask that they become, whatever the image's."""
        for instance in data.get("instances") or ():
            mask = instance.get("mask") if isinstance(instance, dict) else None
            size = mask.get("size") if isinstance(mask, dict) else None
            if not (isinstance(size, list | tuple) and all(map(is_size, size))):
                continue  # Polygons; or what fails on its own.
            if math.prod(size) > self._max_pixels:
                return (
                    f"one of its masks claims {' x '.join(map(str, size))} pixels: correct its annotations "
                    "(tools/check_data.py lists all that are wrong)"
                )
        return None


def _why_not_opened(path: str, folders: Sequence[str]) -> str | None:
    if folders and not any(_lies_in(path, folder) for folder in folders):
        return (
            f"image {path} was not opened: it is outside of its data folder ({', '.join(folders)}): correct "
            "its file name in the annotations"
        )
    return None if "://" in path else why_not_decoded(path)


def _lies_in(path: str, folder: str) -> bool:
    """By the names alone: links are the user's own."""
    return os.path.abspath(path).startswith(os.path.join(folder, ""))


def _no_pixels_are_left(error: Exception) -> bool:
    return isinstance(error, cv2.error) and error.func == "resize" and "inv_scale" in error.err


class CheckImagesHook(Hook):
    """Puts a :class:`CheckedPipeline` into every data set, before workers copy it."""

    def before_train_epoch(self, runner) -> None:
        """Check the training images."""
        _check_images(runner.train_dataloader.dataset, pixel_limit(runner.cfg))

    def before_val_epoch(self, runner) -> None:
        """Check the validation images."""
        _check_images(runner.val_dataloader.dataset, pixel_limit(runner.cfg))

    def before_test_epoch(self, runner) -> None:
        """Check the test images."""
        _check_images(runner.test_dataloader.dataset, pixel_limit(runner.cfg))


class CheckMetricsHook(Hook):
    """Looks at the label maps that panoptic metrics open by themselves, before they do so."""

    def before_val(self, runner) -> None:
        """Look at those of the validation."""
        _check_metrics(runner.val_evaluator, pixel_limit(runner.cfg))

    def before_test(self, runner) -> None:
        """Look at those of the test."""
        _check_metrics(runner.test_evaluator, pixel_limit(runner.cfg))


def _check_metrics(evaluator: Evaluator, max_pixels: int) -> None:
    set_pixel_limit(max_pixels)
    for metric in evaluator.metrics:
        folder, content = getattr(metric, "seg_prefix", None), getattr(metric, "_coco_api", None)
        if not folder or "://" in folder or content is None:
            continue
        folder = os.path.abspath(folder)
        for annotation in content.dataset["annotations"]:
            path = os.path.join(folder, str(annotation.get("file_name", "")))
            if refusal := _why_not_opened(path, [folder]):
                raise ImageError(refusal)


def _check_images(dataset: Any, max_pixels: int) -> None:
    for inner in _unwrap(dataset):
        pipeline = getattr(inner, "pipeline", None)
        if type(pipeline) is Compose:
            inner.pipeline = CheckedPipeline(pipeline.transforms, max_pixels, _folders(inner))


def _folders(dataset: Any) -> list[str]:
    """A data set's folders; none if one of them is not said, or is no folder."""
    prefixes = getattr(dataset, "data_prefix", None)
    folders = [str(folder) for folder in (prefixes or {}).values()]
    return folders if all(folders) and not any("://" in folder for folder in folders) else []


def _unwrap(dataset: Any) -> Iterator[Any]:
    """The data sets inside ConcatDataset, RepeatDataset, MultiImageMixDataset and the like."""
    yield dataset
    inner = getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]
    for child in inner:
        if child is not None:
            yield from _unwrap(child)
