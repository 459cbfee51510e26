"""Opening images and label maps of strangers, whatever they hold."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
from PIL import Image, UnidentifiedImageError

from ...files.images import FORMATS, LIMIT_FIELD, states_orientation, why_not_decoded
from ...files.user_files import why_not_read
from ..coco import is_of_windows, stays_inside
from . import faults
from .data_sets import ConfiguredDataSet
from .faults import FaultKind, Finding, quoted

# What is wrong with a file that is missing, too large or unreadable.
FileFaults = tuple[FaultKind, FaultKind, FaultKind]
IMAGES = (faults.IMAGE_MISSING, faults.IMAGE_TOO_LARGE, faults.IMAGE_UNREADABLE)
LABEL_MAPS = (faults.LABEL_MAP_MISSING, faults.LABEL_MAP_TOO_LARGE, faults.LABEL_MAP_UNREADABLE)


class ImageFault(Exception):
    """An image or a label map that cannot be opened; the message completes "it ..."."""

    def __init__(self, kind: FaultKind, message: str):
        super().__init__(message)
        self.kind = kind


class Picture(NamedTuple):
    """Width and height of a decoded image: as a training sees it, and as stored, before metadata turn it."""

    size: tuple[int, int]
    stored_size: tuple[int, int]


def opened(path: str, kinds: FileFaults) -> Image.Image:
    """Read and decode an image or a label map; ImageFault if it must not be decoded, or cannot be."""
    missing, too_large, unreadable = kinds
    if reason := why_not_read(path):
        raise ImageFault(missing, reason)
    if refusal := why_not_decoded(path):
        kind = too_large if LIMIT_FIELD in refusal else unreadable
        raise ImageFault(kind, refusal.removeprefix(f"image {path} "))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Large, odd metadata: what can be decoded is good.
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return image
    except Exception as error:
        # Decoders of damaged content raise anything: OSError, SyntaxError, struct.error, ...
        is_no_image = isinstance(error, UnidentifiedImageError)
        reason = "its content is no image" if is_no_image else quoted(error)
        raise ImageFault(unreadable, f"cannot be decoded: {reason}") from error


def opened_picture(path: str, data_set: ConfiguredDataSet) -> Picture:
    """Read and decode an image as a training of the data set does; ImageFault if OpenCV does not read it."""
    image = opened(path, IMAGES)
    if not cv2.haveImageReader(path):
        what = f"is a {image.format}, which OpenCV does not read"
        raise ImageFault(faults.IMAGE_UNREADABLE, what)
    what = f"cannot be decoded by OpenCV ({image.format}, mode {image.mode})"
    flag, backend = data_set.image_reading
    try:
        pixels = mmcv.imfrombytes(Path(path).read_bytes(), flag, backend=backend)
    except Exception as error:
        raise ImageFault(faults.IMAGE_UNREADABLE, what) from error
    if pixels is None:
        raise ImageFault(faults.IMAGE_UNREADABLE, what)
    return Picture(pixels.shape[1::-1], image.size)


def image_findings(data_set: ConfiguredDataSet, image: dict) -> Iterator[Finding]:
    """Whether an image of a COCO file can be decoded and has the size that it should.

    A file name that leaves the folder is not opened, nor one with backslashes, which has been reported.
    """
    name = image["file_name"]
    if not stays_inside(name) or is_of_windows(name, data_set.images):
        return
    path = os.path.join(data_set.images, name)
    stated = image.get("width"), image.get("height")
    try:
        picture = opened_picture(path, data_set)
    except ImageFault as fault:
        kind, what = fault.kind, str(fault)
    else:
        if None in stated or picture.size == stated:
            return
        kind, what = faults.IMAGE_SIZE, f"is {described(picture)}, not {by(stated)} as annotated"
    yield data_set.finding(kind, f"{image_name(image)} {what}", image["id"], path)


def image_name(image: dict) -> str:
    """An image of a COCO file as a message names it."""
    return f"image {quoted(image['id'])} ({quoted(image['file_name'])})"


def described(picture: Picture) -> str:
    """The size of an image in words."""
    turned = " after EXIF turns it" if picture.size != picture.stored_size else ""
    return f"{by(picture.size)}{turned}"


def by(size: tuple) -> str:
    """Width and height as a message shows them."""
    return "x".join(map(quoted, size))


def turned_label_map(image: Image.Image) -> str | None:
    """What is wrong with a label map that asks to be turned; None if it does not."""
    if not states_orientation(image):
        return None
    return "asks to be turned (EXIF orientation), which not all readers of label maps do"
