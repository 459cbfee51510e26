"""Opening images and label maps of strangers, whatever they hold."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
from PIL import Image, UnidentifiedImageError

from ..datasets.coco_values import stays_inside
from ..engine.images import decodes
from ..image_files import FORMATS
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

_ORIENTATION = 0x0112
_TURNED = range(5, 9)  # EXIF orientations that exchange width and height.


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


def opened(path: str, kinds: FileKinds) -> Image.Image:
    """Read and decode an image or a label map.

    Returns:
        It, in memory.

    Raises:
        ImageFault: It is not there, has more pixels than Pillow decodes, or cannot be decoded.
    """
    try:
        if not os.path.isfile(path):
            raise ImageFault(kinds.missing, "was not found")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Large, odd metadata: what can be decoded is good.
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return image
    except ImageFault:
        raise
    except Image.DecompressionBombError as error:
        reason = str(error).split(",")[0]
        raise ImageFault(kinds.too_large, f"was not decoded: {reason}") from error
    except Exception as error:
        # Decoders of damaged content raise anything: OSError, SyntaxError, struct.error, ...
        is_known = not isinstance(error, UnidentifiedImageError)
        reason = quoted(error) if is_known else "its content is no image"
        raise ImageFault(kinds.unreadable, f"cannot be decoded: {reason}") from error


def opened_picture(path: str) -> Image.Image:
    """Read and decode an image that OpenCV, which a training uses, reads too.

    Raises:
        ImageFault: see :func:`opened`.
    """
    image = opened(path, IMAGES)
    if not cv2.haveImageReader(path):
        raise ImageFault(IMAGE_UNREADABLE, f"is a {image.format}, which OpenCV does not read")
    if not decodes(Path(path).read_bytes()):
        raise ImageFault(
            IMAGE_UNREADABLE, f"cannot be decoded by OpenCV ({image.format}, mode {image.mode})"
        )
    return image


def seen_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as OpenCV gives the image to a training: turned as EXIF says."""
    orientation = None
    with contextlib.suppress(Exception):  # Damaged metadata, which OpenCV passes over.
        orientation = image.getexif().get(_ORIENTATION)
    return image.size[::-1] if orientation in _TURNED else image.size


def image_findings(data_set: DataSet, image: dict) -> Iterator[Finding]:
    """Whether an image of a COCO file can be decoded and has the size that it should.

    A file name that leaves the folder is not opened.
    """
    if not stays_inside(image["file_name"]):
        return
    path = os.path.join(data_set.images, image["file_name"])
    try:
        picture = opened_picture(path)
    except ImageFault as fault:
        yield data_set.finding(fault.kind, f"{image_name(image)} {fault}", image["id"], path)
        return
    size, stated = seen_size(picture), (image.get("width"), image.get("height"))
    if None not in stated and size != stated:
        yield data_set.finding(
            IMAGE_SIZE,
            f"{image_name(image)} is {described(picture)}, not {by(stated)} as annotated",
            image["id"],
            path,
        )


def described(image: Image.Image) -> str:
    """The size of an image in words."""
    turned = " after EXIF turns it" if seen_size(image) != image.size else ""
    return f"{by(seen_size(image))}{turned}"


def by(size: tuple) -> str:
    """Width and height as a message shows them."""
    return "x".join(map(quoted, size))
