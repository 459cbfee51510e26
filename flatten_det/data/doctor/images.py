"""Opening images and label maps of strangers, whatever they hold."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
from PIL import Image, UnidentifiedImageError

from ..coco_values import is_of_windows, stays_inside
from ...files.images import FORMATS, LIMIT_FIELD, states_orientation, why_not_decoded
from ...files.user_files import why_not_read
from .data_sets import DataSet
from .findings import Finding, quoted
from .json_file import image_name
from .kinds import (
    IMAGE_MISSING,
    IMAGE_SIZE,
    IMAGE_TOO_LARGE,
    IMAGE_UNREADABLE,
    LABEL_MAP_MISSING,
    LABEL_MAP_TOO_LARGE,
    LABEL_MAP_UNREADABLE,
    Kind,
)


@dataclass(frozen=True)
class FileKinds:
    """What is wrong with a file that cannot be opened."""

    missing: Kind
    too_large: Kind
    unreadable: Kind


IMAGES = FileKinds(IMAGE_MISSING, IMAGE_TOO_LARGE, IMAGE_UNREADABLE)
LABEL_MAPS = FileKinds(LABEL_MAP_MISSING, LABEL_MAP_TOO_LARGE, LABEL_MAP_UNREADABLE)


class ImageFault(Exception):
    """An image or a label map that cannot be opened; the message completes "it ..."."""

    def __init__(self, kind: Kind, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Picture:
    """A decoded image.

    Attributes:
        size: width and height, as a training sees it.
        stored_size: those in the file, from which metadata may turn it.
    """

    size: tuple[int, int]
    stored_size: tuple[int, int]


def opened(path: str, kinds: FileKinds) -> Image.Image:
    """Read and decode an image or a label map.

    Returns:
        It, in memory.

    Raises:
        ImageFault: It is not there, must not be decoded, or cannot be.
    """
    reason = why_not_read(path)
    if reason is not None:
        raise ImageFault(kinds.missing, reason)
    if refusal := why_not_decoded(path):
        kind = kinds.too_large if LIMIT_FIELD in refusal else kinds.unreadable
        raise ImageFault(kind, refusal.removeprefix(f"image {path} "))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Large, odd metadata: what can be decoded is good.
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return image
    except Exception as error:
        # Decoders of damaged content raise anything: OSError, SyntaxError, struct.error, ...
        is_known = not isinstance(error, UnidentifiedImageError)
        reason = quoted(error) if is_known else "its content is no image"
        raise ImageFault(kinds.unreadable, f"cannot be decoded: {reason}") from error


def opened_picture(path: str, data_set: DataSet) -> Picture:
    """Read and decode an image as a training does.

    Args:
        path: of the file.
        data_set: how it reads images.

    Raises:
        ImageFault: see :func:`opened`; or OpenCV, which a training uses, does not read it.
    """
    image = opened(path, IMAGES)
    if not cv2.haveImageReader(path):
        raise ImageFault(IMAGE_UNREADABLE, f"is a {image.format}, which OpenCV does not read")
    try:
        pixels = mmcv.imfrombytes(Path(path).read_bytes(), **data_set.image_reading)
    except Exception:
        pixels = None
    if pixels is None:
        raise ImageFault(
            IMAGE_UNREADABLE, f"cannot be decoded by OpenCV ({image.format}, mode {image.mode})"
        )
    return Picture(pixels.shape[1::-1], image.size)


def image_findings(data_set: DataSet, image: dict) -> Iterator[Finding]:
    """Whether an image of a COCO file can be decoded and has the size that it should.

    A file name that leaves the folder is not opened, nor one with backslashes, which has been reported.
    """
    name = image["file_name"]
    if not stays_inside(name) or is_of_windows(name, data_set.images):
        return
    path = os.path.join(data_set.images, name)
    try:
        picture = opened_picture(path, data_set)
    except ImageFault as fault:
        yield data_set.finding(fault.kind, f"{image_name(image)} {fault}", image["id"], path)
        return
    stated = image.get("width"), image.get("height")
    if None not in stated and picture.size != stated:
        yield data_set.finding(
            IMAGE_SIZE,
            f"{image_name(image)} is {described(picture)}, not {by(stated)} as annotated",
            image["id"],
            path,
        )


def described(picture: Picture) -> str:
    """The size of an image in words."""
    turned = " after EXIF turns it" if picture.size != picture.stored_size else ""
    return f"{by(picture.size)}{turned}"


def turned_label_map(image: Image.Image) -> str | None:
    """What is wrong with a label map that asks to be turned; None if it does not."""
    if not states_orientation(image):
        return None
    return "asks to be turned (EXIF orientation), which not all readers of label maps do"


def by(size: tuple) -> str:
    """Width and height as a message shows them."""
    return "x".join(map(quoted, size))
