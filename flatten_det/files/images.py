"""Images: which a command line means, names for their results, and what they say before they are decoded."""

import contextlib
import glob
import math
import os
import re
import struct
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import cv2
import numpy as np
from mmengine.config import Config
from PIL import Image

from ..errors import UserError
from .user_files import files_below, why_not_read

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def find_images(inputs: Sequence[str], suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[str]:
    """List the images that files, folders, glob patterns and addresses stand for, each one once.

    A folder stands for the images directly in it (by suffix); ``folder/**`` for all below it. An input that
    stands for none is a UserError. ``suffixes``: what counts as an image.
    """
    found: dict[Path | str, str] = {}
    for given in inputs:
        paths = [] if is_url(given) else _expand(given, suffixes)
        if is_url(given):
            found[given] = given
        elif not paths:
            what = "image or video" if VIDEO_SUFFIXES[0] in suffixes else "image"
            raise UserError(
                f"{given}: no {what} found: give {what} files, a folder or a quoted glob pattern "
                f"(known suffixes: {' '.join(suffixes)})"
            )
        for path in paths:
            found.setdefault(path.resolve(), str(path))
    return list(found.values())


def is_url(text: str) -> bool:
    """Whether an image is at an address, and not in a file."""
    return text.lower().startswith(("http://", "https://"))


def _expand(given: str, suffixes: Sequence[str]) -> list[Path]:
    path = Path(given)
    if path.is_file():
        return [path]  # Named by the user: whatever its suffix.
    candidates = path.iterdir() if path.is_dir() else map(Path, glob.glob(given, recursive=True))
    return sorted(p for p in candidates if p.suffix.lower() in suffixes and p.is_file())


def images_below(folder: Path) -> list[Path]:
    """All images in a folder and below it, by suffix, of the files that are no program's own."""
    return [path for path in files_below(folder, *IMAGE_SUFFIXES) if path.is_file()]


def output_names(paths: Iterable[str], reserved: Sequence[str] = ()) -> dict[str, str]:
    """Give each input path a name for its results, without suffix.

    The name is the path below the inputs' common folder, so equal file names in two folders stay
    apart, with ``/`` for subfolders; files that differ in the suffix only keep it. Names that differ in
    case only, or in how an accent is encoded, count as equal, as they are for many disks. Those that are
    ``reserved`` are given to none.
    """
    absolute = {path: Path(os.path.abspath(_without_scheme(path))) for path in paths}
    if not absolute:
        return {}
    folder = os.path.commonpath([path.parent for path in absolute.values()])
    relative = {key: path.relative_to(folder).as_posix() for key, path in absolute.items()}
    # Of "..jpg" this is all.
    stems = {key: os.path.splitext(path)[0] for key, path in relative.items()}
    counts = Counter(map(_as_disks_see_it, stems.values()))
    names: dict[str, str] = {}
    taken = set(map(_as_disks_see_it, reserved))
    for key, path in relative.items():
        name = stems[key] if counts[_as_disks_see_it(stems[key])] == 1 else path
        while _as_disks_see_it(name) in taken:
            name += "_"
        taken.add(_as_disks_see_it(name))
        names[key] = name
    return names


def _without_scheme(path: str) -> str:
    """A URL as a path of its host: what follows ``?`` may be secret, and so may what precedes the host."""
    address = urlsplit(path) if is_url(path) else None
    return path if address is None else f"{address.hostname}{address.path}"


def _as_disks_see_it(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


# What Pillow may decode. No vector formats: for EPS, it would start another program.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "SUN", "TIFF", "WEBP")
if find_spec("PIL.AvifImagePlugin"):  # Not in older ones.
    FORMATS += ("AVIF",)
LIMIT_FIELD = "max_image_pixels"
# OpenCV's own limit, from an environment variable that it reads when it is imported.
_OPENCV_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
_OPENCV_LIMIT = int(os.environ.get(_OPENCV_VARIABLE) or 1 << 30)
# Pillow's limits that a config has set, and which one they took the place of: others' configs have that.
_replaced: dict[int | None, int | None] = {}
_OF_PILLOW = 89_478_485  # For who has turned it off.
_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT, _BIG_TIFF = 256, 257, 43
_TIFF_ORDERS = {b"II": "<", b"MM": ">"}
# By version: how the number of entries is stored, and an entry as tag, type, count and value.
_TIFF_KINDS = {42: ("H", "HHI4s"), _BIG_TIFF: ("Q", "HHQ8s")}
# By type: bytes, and the kind of number.
_TIFF_NUMBERS = {1: (1, "B"), 3: (2, "H"), 4: (4, "I"), 16: (8, "Q")}


def pixel_limit(cfg: Config) -> int:
    """How many pixels an image of a config's data may have: ``max_image_pixels``, or Pillow's limit.

    A UserError if it is no positive whole number, or more than OpenCV decodes.
    """
    limit = cfg.get(LIMIT_FIELD)
    if limit is None:
        return 2 * (_replaced.get(Image.MAX_IMAGE_PIXELS, Image.MAX_IMAGE_PIXELS) or _OF_PILLOW)
    if type(limit) is not int or limit < 1:
        raise UserError(f"{LIMIT_FIELD}={limit!r} in the config: give a positive whole number")
    if limit > _OPENCV_LIMIT:
        raise UserError(
            f"{LIMIT_FIELD}={limit} in the config is more than OpenCV decodes: set the environment "
            f"variable {_OPENCV_VARIABLE}={limit} too"
        )
    return limit


def set_pixel_limit(limit: int) -> None:
    """Let Pillow refuse images of more pixels, in this process."""
    half = math.ceil(limit / 2)  # It warns from its number on, and refuses from twice that on.
    if half == Image.MAX_IMAGE_PIXELS:
        return
    _replaced[half] = _replaced.get(Image.MAX_IMAGE_PIXELS, Image.MAX_IMAGE_PIXELS)
    Image.MAX_IMAGE_PIXELS = half
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def why_not_decoded(path: str | Path) -> str | None:
    """Say in one line why an image must not be decoded, or opened at all; None if it may.

    It may be if it is a file that states its size, and no more pixels than the limit. One that is not
    there, or is of no kind that OpenCV knows, is left to its reader.
    """
    reason = why_not_read(path)
    if reason is not None:
        return None if reason == "was not found" else f"image {path} {reason}: it was not opened"
    try:
        with Image.open(path, formats=(*FORMATS, "EPS")) as image:
            kind = image.format
            is_read_alike = kind != "PPM" or _is_read_alike(path, image.tile[0][2])
    except Image.DecompressionBombError as error:
        return _too_large(path, str(error).split(",")[0])
    except Exception:
        # OpenCV looks at the first bytes, and not at the name.
        kind, is_read_alike = None, not cv2.haveImageReader(str(path))
    if kind == "EPS":
        return f"image {path} was not decoded: it is PostScript, a program: convert it to PNG"
    if kind == "TIFF" or not is_read_alike:
        return _why_not_decoded_by_opencv(path)
    return None


def _too_large(path: str | Path, reason: str) -> str:
    return (
        f"image {path} was not decoded: {reason}: if it is meant to be so large, raise "
        f"{LIMIT_FIELD} in the config (--cfg-options {LIMIT_FIELD}=...)"
    )


def _is_read_alike(path: str | Path, header_size: int) -> bool:
    """Whether the sides in a PNM's header are the same to all: a comment ends a number to OpenCV alone."""
    with open(path, "rb") as file:
        return not re.search(rb"\d#", file.read(header_size))


def _why_not_decoded_by_opencv(path: str | Path) -> str | None:
    """For what Pillow does not know, or may read otherwise."""
    try:
        pixels = math.prod(_tiff_size(path))
    except Exception:
        return (
            f"image {path} cannot be decoded ({os.path.getsize(path)} bytes): how large it is cannot be told "
            "beforehand: get it again if it is damaged, or convert it to PNG (HDR, PFM, PAM, EXR, ...)"
        )
    limit = 2 * Image.MAX_IMAGE_PIXELS
    if pixels > limit:
        return _too_large(path, f"Image size ({pixels} pixels) exceeds limit of {limit} pixels")
    return None


def _tiff_size(path: str | Path) -> tuple[int, int]:
    """Of its first page, with pixels of any kind, such as many channels or fractions of each.

    Of a side that is stated twice, readers take the first or the last: the larger one counts here.
    """
    with open(path, "rb") as file:
        order, version, offset = _unpack(file, "2sHI", "<" if file.peek(2)[:2] == b"II" else ">")
        order, (count_kind, entry_kind) = _TIFF_ORDERS[order], _TIFF_KINDS[version]
        if version == _BIG_TIFF:
            (offset,) = _unpack(file, "Q", order)
        file.seek(offset)
        (count,) = _unpack(file, count_kind, order)
        sides = {_TIFF_WIDTH: 0, _TIFF_HEIGHT: 0}
        for _ in range(count):
            tag, kind, _, field = _unpack(file, entry_kind, order)
            if tag in sides:
                size, value_kind = _TIFF_NUMBERS[kind]
                sides[tag] = max(sides[tag], *struct.unpack(order + value_kind, field[:size]))
    width, height = sides.values()
    return width, height


def _unpack(file: BinaryIO, kind: str, order: str) -> tuple:
    return struct.unpack(order + kind, file.read(struct.calcsize(order + kind)))


def decoded(content: bytes, flag: int = cv2.IMREAD_COLOR) -> np.ndarray | None:
    """What OpenCV, with which the pipelines read, makes of a file's content; None if it cannot."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flag)
    except cv2.error:
        return None


def seen_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as OpenCV gives it to a training; a UserError if it cannot, or must not.

    Whether OpenCV turns an image as its metadata say depends on the format and on OpenCV's version: it
    is asked where they say something.
    """
    _refuse(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if not states_orientation(image):
                return image.size
    except Exception:  # Of a kind that OpenCV alone knows.
        pass
    return read_image(path).shape[1::-1]


def read_image(path: str | Path) -> np.ndarray:
    """The pixels, BGR (H, W, 3), as OpenCV gives them to a training; a UserError as of :func:`seen_size`."""
    _refuse(path)
    picture = decoded(Path(path).read_bytes())
    if picture is None:
        raise UserError(f"image {path} cannot be decoded: get it again")
    return picture


def _refuse(path: str | Path) -> None:
    reason = why_not_read(path)
    if reason is not None:
        raise UserError(f"image {path} {reason}: get it again")
    if refusal := why_not_decoded(path):
        raise UserError(refusal)


def states_orientation(image: Image.Image) -> bool:
    """Whether an image's metadata ask for it to be turned or mirrored."""
    with contextlib.suppress(Exception):  # Damaged metadata, which readers pass over.
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    return False
