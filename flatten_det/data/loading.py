"""Data pipelines: files that must not be opened, images that cannot be read, errors that name the file."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from mmengine import dist
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader

from ..config import all_datasets
from ..errors import UserError
from ..files.images import FORMATS, decoded, pixel_limit, set_pixel_limit, why_not_decoded
from ..files.user_files import NotUtf8Error, why_not_read
from .coco import NotJsonError, is_size, parse_json


@contextmanager
def blame_annotation_files(cfg: Config) -> Iterator[None]:
    """Refuse what is no file, and turn errors within the block into ones that name the broken file.

    Raises:
        UserError: One cannot be opened, which is seen before, or is not valid JSON.
    """
    files = list(dict.fromkeys(_annotation_files(cfg.to_dict())))
    for path in files:
        if reason := why_not_read(path):
            raise UserError(f"annotation file {path} {reason}: correct ann_file in the config")
    try:
        yield
    except (ValueError, RecursionError) as error:
        for path in files:
            try:
                parse_json(path.read_bytes() if path.suffix == ".json" else b"{}")
            except NotUtf8Error as reason:
                raise UserError(f"annotation file {path} {reason}") from error
            except NotJsonError as reason:
                raise UserError(f"annotation file {path} {reason}: get it again") from error
        raise


def _annotation_files(node: Any, data_root: str = "") -> Iterator[Path]:
    """Every existing ``ann_file``, joined to the ``data_root`` of its own section; no folders."""
    if isinstance(node, dict):
        data_root = node.get("data_root") or data_root
        ann_file = node.get("ann_file")
        if isinstance(ann_file, str) and ann_file and isinstance(data_root, str):
            for path in (Path(data_root, ann_file), Path(ann_file)):
                if path.exists() and not path.is_dir():
                    yield path
        node = node.values()
    for child in node:
        if isinstance(child, dict | list | tuple):
            yield from _annotation_files(child, data_root)


_READ_FROM = {
    "img_path": cv2.IMREAD_COLOR,
    "img_path2": cv2.IMREAD_COLOR,
    "seg_map_path": cv2.IMREAD_UNCHANGED,
    "depth_map_path": cv2.IMREAD_UNCHANGED,
}


class ImageError(UserError):
    """An image or label map that is missing or cannot be decoded."""


def image_error(path: str | Path, flag: int = cv2.IMREAD_COLOR) -> str | None:
    """Say in one line why OpenCV cannot, or must not, decode an image or label map; None if it can."""
    path = Path(path)
    if refusal := why_not_decoded(path):
        return refusal
    if not path.is_file():
        return f"image {path} not found: {_why_missing(path)}"
    content = path.read_bytes()
    # Decoders of damaged content raise anything: OSError, SyntaxError, struct.error, ...
    with contextlib.suppress(Exception):
        # What OpenCV alone knows is not broken.
        with (
            contextlib.suppress(UnidentifiedImageError),
            Image.open(path, formats=FORMATS) as image,
        ):
            image.load()
        if decoded(content, flag) is not None:
            return None
    return f"image {path} cannot be decoded ({len(content)} bytes): get the file again or remove it"


def too_narrow(error: Exception, name: str) -> str | None:
    """Say in one line that no pixels are left of an image after resizing, if that is the error."""
    # OpenCV's words where a side is less than a pixel.
    if isinstance(error, cv2.error) and error.func == "resize" and "inv_scale" in error.err:
        return f"image {name} is too narrow: resized as the config says, no pixels are left of it: remove it"
    return None


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

    It opens no file outside of ``folders`` (none: anywhere), none of more than ``max_pixels`` (see
    :func:`~flatten_det.files.images.pixel_limit`; None: Pillow's limit), and none that is a program. Its
    failures on a broken image name the file: the readers report a broken file as a failed assertion, an
    OpenCV or a Pillow error, mostly without its name, so, after a failure, the sample's files are looked at.
    """

    def __init__(
        self, transforms: Sequence, max_pixels: int | None = None, folders: Sequence[str] = ()
    ) -> None:
        super().__init__(transforms)
        self._max_pixels = 2 * Image.MAX_IMAGE_PIXELS if max_pixels is None else max_pixels
        self._folders = [os.path.abspath(folder) for folder in folders]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Run the transforms; ImageError if a file must not be opened, or fails and cannot be decoded."""
        set_pixel_limit(self._max_pixels)  # Here: a data worker need not inherit it.
        # The transforms may replace these, or, with mosaics, hand on another sample's.
        paths = [(data[key], flag) for key, flag in _READ_FROM.items() if data.get(key)]
        for path, _ in paths:
            _check_may_be_opened(str(path), self._folders)
        self._check_masks(data)
        try:
            return super().__call__(data)
        except Exception as error:
            for path, flag in paths:
                if "://" not in str(path) and (reason := image_error(path, flag)):
                    raise ImageError(reason) from error
            if "img_path" in data and (reason := too_narrow(error, data["img_path"])):
                raise ImageError(reason) from error
            raise

    def _check_masks(self, data: dict[str, Any]) -> None:
        """Run lengths state the size of the mask that they become, whatever the image's."""
        for instance in data.get("instances") or ():
            mask = instance.get("mask") if isinstance(instance, dict) else None
            size = mask.get("size") if isinstance(mask, dict) else None
            if not (isinstance(size, list | tuple) and all(map(is_size, size))):
                continue  # Polygons; or what fails on its own.
            if math.prod(size) > self._max_pixels:
                claimed = " x ".join(map(str, size))
                raise ImageError(
                    f"image {data.get('img_path')}: one of its masks claims {claimed} pixels: correct its "
                    "annotations (flatten-det check lists all that are wrong)"
                )


def _check_may_be_opened(path: str, folders: Sequence[str]) -> None:
    # By the names alone: links are the user's own.
    place = os.path.abspath(path)
    if folders and not any(place.startswith(os.path.join(folder, "")) for folder in folders):
        raise ImageError(
            f"image {path} was not opened: it is outside of its data folder ({', '.join(folders)}): correct "
            "its file name in the annotations"
        )
    if "://" not in path and (refusal := why_not_decoded(path)):
        raise ImageError(refusal)


class CheckFilesHook(Hook):
    """Keeps a training, and the metrics of a test, from files that they must not open.

    It puts a :class:`CheckedPipeline` into the data sets of a training, before workers copy them, and looks
    at the label maps that panoptic metrics open by themselves. Images of a test are checked by
    :class:`LeaveOutUnreadableHook`.
    """

    def before_train_epoch(self, runner) -> None:
        """Check the training images."""
        check_images(runner.train_dataloader.dataset, pixel_limit(runner.cfg))

    def before_val_epoch(self, runner) -> None:
        """Check the validation images."""
        check_images(runner.val_dataloader.dataset, pixel_limit(runner.cfg))

    def before_val(self, runner) -> None:
        """Look at the label maps of the validation."""
        _check_metrics(runner.val_evaluator, pixel_limit(runner.cfg))

    def before_test(self, runner) -> None:
        """Look at the label maps of the test."""
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
            _check_may_be_opened(path, [folder])


def check_images(
    dataset: Any, max_pixels: int, kind: type[CheckedPipeline] = CheckedPipeline
) -> None:
    """Put a pipeline of a kind into a data set, and into those within it."""
    for inner in all_datasets(dataset):
        pipeline = getattr(inner, "pipeline", None)
        if type(pipeline) is Compose:
            prefixes = getattr(inner, "data_prefix", None) or {}
            folders = [str(folder) for folder in prefixes.values()]
            if not all(folders) or any("://" in folder for folder in folders):
                folders = []  # Not said, or no folder.
            inner.pipeline = kind(pipeline.transforms, max_pixels, folders)


def transforms_of(dataset: Any) -> list[Any]:
    """The steps of a data set's own pipeline, or of a wrapper's; empty if it has none."""
    pipeline = getattr(dataset, "pipeline", None) or []
    return pipeline.transforms if isinstance(pipeline, Compose) else pipeline


COUNT = "unreadable_images"
_LISTED = 10


@dataclass(frozen=True)
class Unreadable:
    """In place of a sample: why there is none, in a line with the file's name, and the image's id."""

    reason: str
    img_id: Any = None


def left_out(reasons: Sequence[str], total: int, what: str = "") -> UserError:
    """The error with which a tool ends that did its work for all images but some, with a reason for each."""
    listed = "; ".join(reasons[:_LISTED])
    more = f"; and {len(reasons) - _LISTED} more" if len(reasons) > _LISTED else ""
    return UserError(f"{len(reasons)} of {total} images{what}: {listed}{more}")


class _Pipeline(CheckedPipeline):
    """Gives :class:`Unreadable` where there is no sample."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | Unreadable | None:
        try:
            return super().__call__(data)
        except ImageError as error:
            return Unreadable(str(error), data.get("img_id"))


def _collate(collate: Callable[[list], Any], items: list) -> tuple[Any, list[Unreadable]]:
    """A batch of the samples, if there is one, beside what could not be read."""
    samples = [item for item in items if not isinstance(item, Unreadable)]
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    return (collate(samples) if samples else None), unreadable


@dataclass(frozen=True)
class _Readable:
    """A data loader, with :func:`_collate`, without what cannot be read; ``note`` gets that at the end."""

    loader: DataLoader
    note: Callable[[list[Unreadable]], None]

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        found = []
        for batch, unreadable in self.loader:
            found += unreadable
            if batch is not None:
                yield batch
        self.note([each for of_rank in dist.all_gather_object(found) for each in of_rank])


class LeaveOutUnreadableHook(Hook):
    """Tests on the images that can be read.

    Objects in the others do not count. How many these are is among the metrics (:data:`COUNT`), in the log
    too; ``reasons`` are one line for each, on all ranks.
    """

    priority = "HIGHEST"  # before the metrics are logged

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def before_test_epoch(self, runner: Runner) -> None:
        """Put `_Readable` between the data loader and the loop, before workers copy the data set."""
        loader = runner.test_dataloader
        check_images(loader.dataset, pixel_limit(runner.cfg), _Pipeline)
        loader.collate_fn = partial(_collate, loader.collate_fn)

        def note(unreadable: list[Unreadable]) -> None:
            # A sampler may give an image to two ranks.
            self.reasons = list(dict.fromkeys(each.reason for each in unreadable))
            if len(self.reasons) == len(loader.dataset):
                raise left_out(self.reasons, len(loader.dataset))
            # Keep COCO's metrics from taking the objects in these images for missed.
            without = {each.img_id for each in unreadable}
            for metric in runner.test_evaluator.metrics if without else ():
                api = getattr(metric, "_coco_api", None) or getattr(metric, "_lvis_api", None)
                if api is not None and getattr(metric, "img_ids", ()) is None:
                    metric.img_ids = [id_ for id_ in api.get_img_ids() if id_ not in without]

        runner.test_loop.dataloader = _Readable(loader, note)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float]) -> None:
        """Count them among the metrics."""
        if self.reasons:
            metrics[COUNT] = float(len(self.reasons))
