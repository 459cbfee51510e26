"""Draws predictions into an image, with Pillow: transparent masks, and labels that hide no other."""

import colorsys
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..files.atomic import write_atomically
from .rle import Rle, decode

# Larger pictures are reduced: they take seconds, the frameworks' drawing gigabytes, and nobody sees the
# difference.
MAX_PIXELS = 1 << 22
# Neither matplotlib's canvas nor a JPEG of two pictures side by side is longer than 65,535.
MAX_SIDE = 1 << 14
# Smaller ones are enlarged by a whole factor: they have no room for texts otherwise.
MIN_SIDE = 384
# An enlarged strip of three pixels would become as long as no canvas is.
MAX_ENLARGED_SIDE = 4096
OPACITY = 0.45
_GOLDEN_RATIO = 0.618034


def default_palette(count: int) -> list[tuple[int, int, int]]:
    """As many colours that differ, neighbours most."""
    colours = (
        colorsys.hsv_to_rgb(label * _GOLDEN_RATIO % 1, (0.9, 0.65)[label % 2], 0.95)
        for label in range(count)
    )
    return [tuple(round(255 * channel) for channel in colour) for colour in colours]


def reduction(height: int, width: int, max_pixels: int = MAX_PIXELS) -> float:
    """The factor, at most 1, by which an image is not too large for a picture."""
    return min((max_pixels / (height * width)) ** 0.5, MAX_SIDE / max(height, width), 1)


def enlargement(height: int, width: int, min_side: int = MIN_SIDE) -> int:
    """The least whole factor by which no side is too short, while none is too long; 1: it stays."""
    factor = min(-(-min_side // min(height, width)), MAX_ENLARGED_SIDE // max(height, width))
    return max(factor, 1)


def shown_factor(height: int, width: int) -> float:
    """How many pixels of a picture show one of an image of this size."""
    factor = reduction(height, width)
    return factor if factor < 1 else enlargement(height, width)


def nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values (H, W) of any dtype at the centres of the pixels of ``size``, height and width."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)]


def read_rgb(image: str | Path | Image.Image) -> np.ndarray:
    """A file's or Pillow's image as (H, W, 3) uint8, turned as its metadata say; decoders raise anything."""
    if not isinstance(image, Image.Image):
        with Image.open(image) as file:
            return read_rgb(file)
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def encoded(picture: Image.Image, kind: str = "png", **options: object) -> bytes:
    """The content of a picture's file, of a kind and with options of Pillow's."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W) or RGB (H, W, 3); the folder is made."""
    write_atomically(path, encoded(Image.fromarray(pixels)), durable=False)


class Drawing:
    """A picture of an image, into which predictions in the image's pixels are drawn.

    Args:
        pixels: the image, RGB (H, W, 3) uint8.
        palette: RGB by label.
        factor: pixels of the picture for one of the image; None: :func:`shown_factor`.
    """

    def __init__(
        self, pixels: np.ndarray, palette: Sequence[Sequence[int]], factor: float | None = None
    ) -> None:
        height, width = pixels.shape[:2]
        self._factor = shown_factor(height, width) if factor is None else factor
        self._image_size = (height, width)
        self._size = tuple(max(round(side * self._factor), 1) for side in (height, width))
        image = Image.fromarray(pixels)
        if self._size != (height, width):
            method = Image.Resampling.BOX if self._factor < 1 else Image.Resampling.BICUBIC
            image = image.resize(self._size[::-1], method)
        self._pixels = np.array(image)
        self._palette = np.array(palette, np.uint8).reshape(-1, 3)
        self._boxes: list[tuple[list[float], tuple[int, ...]]] = []
        self._labels: list[tuple[str, tuple[float, float, float, float], tuple[int, ...]]] = []
        unit = min(self._size)
        self._line = max(round(unit / 400), 1)
        self._font = ImageFont.load_default(min(max(unit / 70, 11), 32))

    def add_objects(
        self,
        boxes: np.ndarray,
        labels: np.ndarray,
        texts: Sequence[str],
        masks: Sequence[Rle] | None = None,
    ) -> None:
        """Boxes (n, 4), each with a text and maybe a mask, in the colours of their labels (n,)."""
        for place, (box, label) in enumerate(zip(boxes, labels.tolist(), strict=True)):
            colour = self._colour(label)
            if masks is not None:
                self._blend(self._resized(decode(masks[place])), colour)
            corners = (box * self._factor).tolist()
            self._boxes.append((corners, colour))
            self._labels.append((texts[place], tuple(corners), colour))

    def add_regions(
        self, regions: np.ndarray, labels: Mapping[int, int], names: Sequence[str]
    ) -> None:
        """The parts of a map (H, W) whose values have labels, in their colours, bordered and named."""
        regions = self._resized(regions)
        for value, label in labels.items():
            mask, colour = regions == value, self._colour(label)
            if not mask.any():  # In a reduced picture, a few pixels are not there.
                continue
            self._blend(mask, colour)
            x, y = _inner_point(mask)
            self._labels.append((names[label], (x, y, x, y), colour))

    def picture(self) -> Image.Image:
        """The picture, RGB; texts that find no place beside others are left out, the last ones first."""
        image = Image.fromarray(self._pixels)
        canvas = ImageDraw.Draw(image)
        for corners, colour in reversed(self._boxes):  # The best ones on top.
            canvas.rectangle(_in_order(corners), outline=colour, width=self._line)
        taken: list[Sequence[float]] = []
        boxes = [corners for corners, _ in self._boxes]
        for text, target, colour in self._labels:
            left, top, right, bottom = self._font.getbbox(text)
            pad = self._line + 1
            size = (right - left + 2 * pad, bottom - top + 2 * pad)
            # Rather where no other object is hidden; but each object's name before that.
            others = [box for box in boxes if tuple(box) != target]
            place = self._find_place(target, size, [*taken, *others])
            place = place or self._find_place(target, size, taken)
            if place is None:
                continue
            taken.append((place[0], place[1], place[0] + size[0], place[1] + size[1]))
            canvas.rectangle(taken[-1], fill=colour)
            is_bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
            origin = (place[0] + pad - left, place[1] + pad - top)
            canvas.text(
                origin, text, fill=(0, 0, 0) if is_bright else (255, 255, 255), font=self._font
            )
        return image

    def _find_place(
        self, target: Sequence[float], size: tuple[float, float], taken: Sequence[Sequence[float]]
    ) -> tuple[float, float] | None:
        """Where a text of a size is nearest to its box, within the picture, and beside what is taken."""
        (width, height), (left, top, right, bottom) = size, target
        others = np.array(taken, np.float64).reshape(-1, 4)
        places = [
            (left, top - height),
            (left, top),
            (left, bottom),
            (right - width, top - height),
            (right - width, bottom),
            (left, bottom - height),
            (right - width, top),
            (right, top),
            (left - width, top),
            ((left + right - width) / 2, (top + bottom - height) / 2),
        ]
        limits = (max(self._size[1] - width, 0), max(self._size[0] - height, 0))
        for place in places:
            x, y = (min(max(at, 0), limit) for at, limit in zip(place, limits, strict=True))
            hidden = (
                (x < others[:, 2])
                & (x + width > others[:, 0])
                & (y < others[:, 3])
                & (y + height > others[:, 1])
            )
            if not hidden.any():
                return x, y
        return None

    def _blend(self, mask: np.ndarray, colour: Sequence[int]) -> None:
        """Colour a mask (H, W), and its border fully."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        if len(rows) == 0:
            return
        window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        part, pixels = mask[window], self._pixels[window]
        mixed = (1 - OPACITY) * pixels[part] + OPACITY * np.array(colour)
        pixels[part] = mixed.round().astype(np.uint8)
        pixels[part & ~_shrunk(part, self._line)] = colour

    def _resized(self, values: np.ndarray) -> np.ndarray:
        """Values (H, W) of the image's pixels at the centres of the picture's."""
        return values if self._size == self._image_size else nearest(values, self._size)

    def _colour(self, label: int) -> tuple[int, ...]:
        return tuple(self._palette[label % len(self._palette)].tolist())


def _in_order(corners: Sequence[float]) -> list[float]:
    """Corners as Pillow wants them, which refuses a box that ends before it begins."""
    left, top, right, bottom = corners
    return [left, top, max(left, right), max(top, bottom)]


def _shrunk(mask: np.ndarray, count: int) -> np.ndarray:
    """A mask (H, W) without the outermost ``count`` pixels."""
    for _ in range(count):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _inner_point(mask: np.ndarray) -> tuple[int, int]:
    """x and y of a pixel of a mask (H, W): of the median row, in the middle of its longest run."""
    rows = np.flatnonzero(mask.any(1))
    weights = mask[rows].sum(1).cumsum()
    row = int(rows[np.searchsorted(weights, weights[-1] / 2)])
    changes = np.flatnonzero(np.diff(mask[row].astype(np.int8), prepend=0, append=0))
    starts, ends = changes[::2], changes[1::2]
    longest = int((ends - starts).argmax())
    return int(starts[longest] + ends[longest]) // 2, row
