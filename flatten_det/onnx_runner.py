"""Predictions of files that ``flatten-det export`` wrote, by ONNX Runtime: without torch and the frameworks.

What is done before and after the network is what MMDetection and MMSegmentation do, in numpy: images are
resized as by OpenCV, masks pasted and logits resized as by torch.
"""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .errors import UserError, reason_of
from .results import Prediction
from .results.picture import nearest, read_rgb
from .results.prediction import label_type
from .results.rle import encode

Picture = str | Path | Image.Image | np.ndarray
# Numbers of a band of logits: 64 MB.
_BAND_VALUES = 1 << 24
# What a file is for.
BACKBONE, SEGMENTATION = "backbone", "semantic-segmentation"
DETECTION, INSTANCES = "detection", "instance-segmentation"


class _Prepared(NamedTuple):
    source: str
    pixels: np.ndarray  # RGB (H, W, 3), of the image itself
    resized: np.ndarray  # RGB (3, h, w), as the network takes it


class OnnxRunner:
    """Predicts with an ``.onnx`` file for image files, Pillow's images and arrays.

    Args:
        path: a detector or segmentor, written by ``flatten-det export``.
        providers: of ONNX Runtime, the first choice first; None: CUDA where there is one, or else the CPU.

    Attributes:
        metadata: what the file says of itself.
        session: ONNX Runtime's.

    Raises:
        UserError: onnxruntime is not installed, or the file is no such file.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "an .onnx file needs the package onnxruntime: pip install 'flatten-det[onnx]'"
            ) from error
        if not Path(path).is_file():
            raise UserError(f"{path} was not found, or is no file")
        if providers is None:
            known = onnxruntime.get_available_providers()
            wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
            providers = [name for name in wanted if name in known]
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        except Exception as error:  # ONNX Runtime has its own for each kind of damage.
            raise UserError(f"{path} cannot be run by onnxruntime: {reason_of(error)}") from error
        self.metadata = read_metadata(self.session.get_modelmeta().custom_metadata_map)
        task = self.metadata.get("task")
        if task not in (SEGMENTATION, DETECTION, INSTANCES):
            what = "a backbone, which predicts nothing" if task == BACKBONE else "no such model"
            raise UserError(
                f"{path} holds {what}: give a detector or segmentor that flatten-det export wrote"
            )
        self._outputs = [output.name for output in self.session.get_outputs()]

    def __call__(
        self, images: Picture | Iterable[Picture], batch_size: int = 1
    ) -> list[Prediction]:
        """What the model says of each image, in their order.

        Args:
            images: one or several: paths, Pillow's images, arrays RGB (H, W, 3) of uint8.
            batch_size: how many go through the network together, if they are of one size.

        Raises:
            UserError: one cannot be read; the message names it.
        """
        if isinstance(images, str | Path | Image.Image | np.ndarray):
            images = [images]
        found: list[Prediction] = []
        for batch in self._batches(map(self._prepare, images), batch_size):
            begin = time.perf_counter()
            inputs = np.stack([item.resized for item in batch])
            outputs = self.session.run(None, {"image": inputs})
            milliseconds = (time.perf_counter() - begin) * 1e3 / len(batch)
            for index, item in enumerate(batch):
                own = {
                    name: output[index] for name, output in zip(self._outputs, outputs, strict=True)
                }
                found.append(self._prediction(item, own, milliseconds))
        return found

    def _prepare(self, image: Picture) -> _Prepared:
        pixels = read_pixels(image)
        resized = resize_as_rule(pixels, self.metadata["resize"])
        source = str(image) if isinstance(image, str | Path) else ""
        return _Prepared(source, pixels, np.ascontiguousarray(resized.transpose(2, 0, 1)))

    @staticmethod
    def _batches(items: Iterable[_Prepared], batch_size: int) -> Iterator[list[_Prepared]]:
        for _, alike in groupby(items, key=lambda item: item.resized.shape):
            while batch := list(islice(alike, batch_size)):
                yield batch

    def _prediction(
        self, item: _Prepared, outputs: Mapping[str, np.ndarray], milliseconds: float
    ) -> Prediction:
        size = item.pixels.shape[:2]
        input_size = item.resized.shape[1:]
        if self.metadata["task"] == SEGMENTATION:
            found: dict[str, Any] = {"label_map": self._label_map(outputs, input_size, size)}
        else:
            found = self._detections(outputs, input_size, size)
        return Prediction(
            source=item.source,
            size=size,
            names=tuple(self.metadata["names"]),
            palette=self.metadata["palette"],
            milliseconds=milliseconds,
            pixels=None if item.source else item.pixels,
            **found,
        )

    def _label_map(
        self, outputs: Mapping[str, np.ndarray], input_size: tuple[int, int], size: tuple[int, int]
    ) -> np.ndarray:
        dtype = label_type(len(self.metadata["names"]))
        if "labels" in outputs:
            return nearest(outputs["labels"].astype(dtype), size)
        logits = outputs["logits"]
        threshold, align_corners = self.metadata["threshold"], self.metadata["align_corners"]
        labels = np.empty(size, dtype)
        count = max(_BAND_VALUES // (len(logits) * size[1]), 1)
        for top in range(0, size[0], count):
            bottom = min(top + count, size[0])
            band = _resized_rows(logits, [input_size, size], top, bottom, align_corners)
            if len(band) > 1:
                labels[top:bottom] = band.argmax(0)
            else:
                labels[top:bottom] = 1 / (1 + np.exp(-band[0])) > threshold
        return labels

    def _detections(
        self, outputs: Mapping[str, np.ndarray], input_size: tuple[int, int], size: tuple[int, int]
    ) -> dict[str, Any]:
        kept = outputs["scores"] > 0
        (height, width), (input_height, input_width) = size, input_size
        factors = np.array([input_width / width, input_height / height] * 2, np.float32)
        boxes = outputs["boxes"][kept].astype(np.float32) / factors
        found = {
            "boxes": boxes,
            "scores": outputs["scores"][kept].astype(np.float32),
            "labels": outputs["labels"][kept].astype(np.int64),
        }
        if "masks" in outputs:
            threshold = self.metadata["mask_threshold"]
            found["masks"] = [
                encode(paste(mask, box, size, threshold))
                for mask, box in zip(outputs["masks"][kept], boxes, strict=True)
            ]
        return found


def read_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """What a file says of itself: each value is JSON; others' files may say anything, which is left out."""
    found = {}
    for name, text in properties.items():
        try:
            found[name] = json.loads(text)
        except ValueError:
            continue
    return found


def read_pixels(image: Picture) -> np.ndarray:
    """An image as RGB (H, W, 3) uint8, turned as its metadata say; a UserError if it is none."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"an array of shape {image.shape} and {image.dtype} is no image: give RGB (H, W, 3) of uint8"
            )
        return image
    try:
        return read_rgb(image)
    except Exception as error:  # Decoders of damaged files raise anything.
        raise UserError(f"image {image} cannot be read: {reason_of(error)}") from error


def resize_as_rule(pixels: np.ndarray, rule: Mapping[str, Any] | None) -> np.ndarray:
    """``pixels (H, W, 3)`` at the size that the test pipeline's ``Resize`` gives them."""
    size = size_by_rule(pixels.shape[:2], rule)
    return pixels if size == pixels.shape[:2] else resize(pixels, size)


def size_by_rule(size: tuple[int, int], rule: Mapping[str, Any] | None) -> tuple[int, int]:
    """Height and width of an image after the rule ``scale`` (w, h) or ``scale_factor``, ``keep_ratio``."""
    if rule is None:
        return tuple(size)
    height, width = size
    if "scale" in rule:
        scale = rule["scale"]
    else:
        scale = [int(side * rule["scale_factor"] + 0.5) for side in (width, height)]
    if not rule["keep_ratio"]:
        return int(scale[1]), int(scale[0])
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(H, W, C)`` of uint8 resized as by OpenCV's bilinear interpolation, within one grey level.

    In whole numbers, as OpenCV computes it: shares in 1/2048, and four bits dropped between the axes.
    """
    (above, below, *of_rows), (left, right, *of_columns) = (
        _neighbours_and_shares(to, of) for to, of in zip(size, pixels.shape[:2], strict=True)
    )
    one, other = (share[:, None] for share in of_columns)
    wide = pixels[:, left].astype(np.int32) * one
    wide += pixels[:, right].astype(np.int32) * other
    wide >>= 4
    one, other = (share[:, None, None] for share in of_rows)
    resized = (wide[above] * one >> 16) + (wide[below] * other >> 16)
    return (resized + 2 >> 2).astype(np.uint8)


def _neighbours_and_shares(
    to: int, of: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    first, second, share = _neighbours(to, of, align_corners=False)
    shares = (np.rint(part * 2048).astype(np.int32) for part in (1 - share, share))
    return first, second, *shares


def _neighbours(to: int, of: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``to`` places on an axis of ``of``: its two neighbours, and the share of the second."""
    ticks = np.arange(to)
    at_corners, at_middles = ticks * ((of - 1) / max(to - 1, 1)), (ticks + 0.5) * (of / to) - 0.5
    places = at_corners if align_corners else at_middles
    places = places.astype(np.float32).clip(0, of - 1)
    first = places.astype(np.int64)
    return first, np.minimum(first + 1, of - 1), (places - first).astype(np.float32)


def _between(one: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    one = one.astype(np.float32)
    return one + (other - one) * share


def _resized_rows(
    logits: np.ndarray, sizes: Sequence[tuple[int, int]], top: int, bottom: int, align_corners: bool
) -> np.ndarray:
    """Rows of ``logits (C, h, w)`` after they were resized to one size after the other."""
    if not sizes:
        return logits[:, top:bottom]
    *earlier, (height, width) = sizes
    of_height, of_width = earlier[-1] if earlier else logits.shape[1:]
    if (height, width) == (of_height, of_width):
        return _resized_rows(logits, earlier, top, bottom, align_corners)
    above, below, shares = (
        part[top:bottom] for part in _neighbours(height, of_height, align_corners)
    )
    first = above[0]
    source = _resized_rows(logits, earlier, first, below[-1] + 1, align_corners)
    if width != of_width:
        left, right, own = _neighbours(width, of_width, align_corners)
        source = _between(source[:, :, left], source[:, :, right], own)
    return _between(source[:, above - first], source[:, below - first], shares[:, None])


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """The mask ``(H, W)`` of bool of an object, from probabilities ``mask (m, m)`` in its box."""
    height, width = size
    pasted = np.zeros(size, bool)
    x1, y1, x2, y2 = box.tolist()
    left, top = (max(int(np.floor(side)) - 1, 0) for side in (x1, y1))
    right, bottom = (
        min(int(np.ceil(side)) + 1, most) for side, most in ((x2, width), (y2, height))
    )
    if right <= left or bottom <= top:
        return pasted
    # Probabilities of 0 around the mask, which interpolation reaches.
    framed = np.pad(mask.astype(np.float32), 1)
    above, below, row_shares = _places_in_mask(top, bottom, y1, y2, len(mask))
    before, after, column_shares = _places_in_mask(left, right, x1, x2, len(mask))
    rows = _between(framed[above], framed[below], row_shares[:, None])
    values = _between(rows[:, before], rows[:, after], column_shares)
    pasted[top:bottom, left:right] = values >= threshold
    return pasted


def _places_in_mask(
    first: int, end: int, low: float, high: float, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`_neighbours`, for pixels of the image in a mask with a frame; ``low, high``: its box."""
    centres = np.arange(first, end, dtype=np.float32) + np.float32(0.5)
    side = np.float32(high) - np.float32(low)
    # A box without a side has the middle of its mask everywhere.
    parts = (centres - np.float32(low)) / side if side else np.full_like(centres, 0.5)
    places = (parts * count + np.float32(0.5)).clip(0, count + 1)
    below = places.astype(np.int64)
    return below, np.minimum(below + 1, count + 1), places - below
