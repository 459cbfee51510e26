"""Images as users give them: files, folders, patterns, addresses, and what is in memory already."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps

from ..data.loading import ImageError
from ..errors import UserError
from ..files.images import find_images

InMemory: TypeAlias = Image.Image | np.ndarray | torch.Tensor
Images: TypeAlias = str | os.PathLike | InMemory | Iterable[str | os.PathLike | InMemory]
_FORMS = (
    "a path, folder, pattern or URL, a PIL image, a uint8 array (H, W, 3) or a tensor (3, H, W)"
)


@dataclass(frozen=True)
class GivenImage:
    """An image to predict for.

    Attributes:
        name: what messages call it.
        source: its path or URL; empty for one in memory.
        pixels: BGR (H, W, 3) uint8, of one in memory.
    """

    name: str
    source: str = ""
    pixels: np.ndarray | None = None


def given_images(images: Images, bgr: bool, max_pixels: int) -> Iterator[GivenImage | ImageError]:
    """Each image, or why there is none, in the order in which they are given.

    Args:
        images: one, or any number of them, such as from a generator.
        bgr: what order the colours of arrays have; everything else is RGB.
        max_pixels: of a PIL image that is not decoded yet.

    Raises:
        UserError: there is nothing to iterate over.
    """
    if isinstance(images, str | bytes | os.PathLike | InMemory):
        images = [images]
    if not isinstance(images, Iterable):
        raise UserError(f"{type(images).__name__} is no image: give {_FORMS}, or a list of these")
    for number, image in enumerate(images):
        if isinstance(image, str | os.PathLike):
            yield from _named(os.fspath(image))
            continue
        name = f"{number} ({type(image).__name__})"
        try:
            yield GivenImage(name, pixels=_pixels(image, bgr, max_pixels))
        except ImageError as error:
            yield ImageError(f"image {name}: {error}")


def _named(text: str) -> Iterator[GivenImage | ImageError]:
    try:
        paths = find_images([text])
    except UserError as error:
        yield ImageError(str(error))
        return
    yield from (GivenImage(path, path) for path in paths)


def _pixels(image: Any, bgr: bool, max_pixels: int) -> np.ndarray:
    """BGR (H, W, 3), in memory of its own: its owner may write the next image there."""
    if isinstance(image, Image.Image):
        return _of_pillow(image, max_pixels)
    if isinstance(image, torch.Tensor):
        return cv2.cvtColor(_of_tensor(image), cv2.COLOR_RGB2BGR)
    if not isinstance(image, np.ndarray):
        raise ImageError(f"it is none: give {_FORMS}")
    channels = {2: 1, 3: image.shape[-1]}.get(image.ndim) if image.size else None
    if channels not in (1, 3, 4):
        raise ImageError(
            f"an array of shape {image.shape} is none: give (H, W, 3), (H, W) or (H, W, 4), one by one"
        )
    if image.dtype != np.uint8:
        raise ImageError(f"an array of {image.dtype} is none: give 0 to 255 as uint8")
    image = np.ascontiguousarray(image)
    if channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if bgr:
        return image[..., :3].copy()
    return cv2.cvtColor(image, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGR)


def _of_pillow(image: Image.Image, max_pixels: int) -> np.ndarray:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"it has {width} x {height} pixels, and at most {max_pixels} are taken")
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits, of which OpenCV takes the upper ones, too.
            image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
        rgb = np.asarray(image.convert("RGB"))
    except Exception as error:  # Decoders of damaged files raise anything.
        raise ImageError(f"it cannot be decoded: {error}") from error
    if rgb.size == 0:
        raise ImageError("it has no pixels")
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def _of_tensor(image: torch.Tensor) -> np.ndarray:
    """RGB (H, W, 3)."""
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ImageError(
            f"a tensor of shape {tuple(image.shape)} is none: give (3, H, W), one by one"
        )
    image = image.detach().cpu()
    if image.is_floating_point():
        least, most = image.min().item(), image.max().item()
        if not 0 <= least <= most <= 1:
            raise ImageError(
                f"its values are {least:.3g} to {most:.3g}: give 0 to 1, not normalised, or 0 to 255 as uint8"
            )
        image = (image.float() * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ImageError(f"a tensor of {image.dtype} is none: give 0 to 255 as uint8, or 0 to 1")
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())
