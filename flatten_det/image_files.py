"""What an image file says about itself, before anything is decoded."""

import math
import os
import warnings
from pathlib import Path

from mmengine.config import Config
from PIL import Image

from .engine.errors import UserError

# What Pillow may decode. No vector formats: for EPS, it would start another program.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
LIMIT_FIELD = "max_image_pixels"
# OpenCV's own limit, from an environment variable that it reads when it is imported.
_OPENCV_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"
_OPENCV_LIMIT = int(os.environ.get(_OPENCV_VARIABLE) or 1 << 30)


def pixel_limit(cfg: Config) -> int:
    """How many pixels an image of a config's data may have: ``max_image_pixels``, or Pillow's limit.

    Raises:
        UserError: It is no positive whole number, or more than OpenCV decodes.
    """
    limit = cfg.get(LIMIT_FIELD)
    if limit is None:
        return 2 * Image.MAX_IMAGE_PIXELS
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
    Image.MAX_IMAGE_PIXELS = half
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def why_not_decoded(path: str | Path) -> str | None:
    """Say in one line why a file must not be decoded, by its first bytes; None if it may.

    A file that is no image, or none that Pillow knows, is left to its decoder.
    """
    try:
        with Image.open(path, formats=(*FORMATS, "EPS")) as image:
            is_program = image.format == "EPS"
    except Image.DecompressionBombError as error:
        reason = str(error).split(",")[0]
        return (
            f"image {path} was not decoded: {reason}: if it is meant to be so large, raise "
            f"{LIMIT_FIELD} in the config (--cfg-options {LIMIT_FIELD}=...)"
        )
    except Exception:
        return None
    if is_program:
        return f"image {path} was not decoded: it is PostScript, a program: convert it to PNG"
    return None
