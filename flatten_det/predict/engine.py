"""A trained model with its test pipeline, for images outside any data set: the frameworks' data samples."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn

from ..backbones import use_cuda_graphs
from ..config import datasets_under_test, is_segmentor, loads_annotations, type_name
from ..data.loading import CheckedPipeline, ImageError, too_narrow
from ..errors import UserError
from ..files.checkpoints import check_checkpoint, check_fit, checkpoints_read_once
from ..files.downloads import DownloadError, read_url
from ..files.images import is_url, pixel_limit
from .inputs import GivenImage
from .segmentation import predict_in_bands_when_large

# Of an image at an address.
MAX_BYTES = 1 << 28
RESIZES = ("Resize", "FixScaleResize", "FixShapeResize", "ResizeShortestEdge")


def without_resizing(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A pipeline of mmdet or mmseg whose resizes change no size.

    They stay in it, by a factor of 1: detectors need the factor that they note down.
    """
    steps = []
    for step in pipeline:
        if type_name(step) in RESIZES:
            kind = step["type"]
            scope, dot, _ = kind.partition(".") if isinstance(kind, str) else ("", "", "")
            step = {"type": f"{scope}.Resize" if dot else "Resize"}
            step |= {"scale_factor": 1.0, "keep_ratio": True}
        steps.append(dict(step))
    return steps


class Predicted(NamedTuple):
    """What a model gives for an image: a data sample on the CPU, and the milliseconds that it took."""

    image: GivenImage
    sample: BaseDataElement
    milliseconds: float


class SamplePredictor:
    """Predicts the frameworks' data samples for images, with a detector or a segmentor, in batches.

    Other than mmdet's and mmseg's inferencers it is the same for both, names a broken image and
    goes on without it, and leaves the names of the results to the caller.

    Args:
        cfg: A complete config.
        checkpoint: Weights; without any the model keeps its random ones.
        device: Where to run, such as ``cpu`` or ``cuda:0``.
        full_size: Predict at the size of the image, instead of resizing it as the test pipeline does.
        model: One that is built and has its weights already.
        precision: What the model computes in, by autocast; None: what it is called in.

    Attributes:
        model: In evaluation mode, on the device.
        device: Where it is.
        dataset_meta: ``classes`` and ``palette``, from the checkpoint or else the config.
        max_pixels: Larger images are not decoded.
        broken: One line for each image that could not be read.

    Raises:
        UserError: The checkpoint is missing, unreadable or for another model, or the device
            does not exist.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str | None,
        device: str | torch.device,
        full_size: bool = False,
        model: nn.Module | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        init_default_scope(cfg.get("default_scope", "mmdet"))
        self.device = _usable(device)
        self.model = (model or revert_sync_batchnorm(MODELS.build(cfg.model))).eval()
        self.dataset_meta, pipeline = _tested_data(cfg)
        if checkpoint is not None:
            self.dataset_meta |= load_weights(self.model, checkpoint)
        self.model.to(self.device)
        predict_in_bands_when_large(self.model)
        self._test_step = self.model.test_step
        self._precision = precision
        self.max_pixels = pixel_limit(cfg)
        pipeline = without_resizing(pipeline) if full_size else pipeline
        # Images in memory take the same road as files, but for the first step.
        self._read = CheckedPipeline(pipeline[:1], self.max_pixels)
        self._transform = Compose(pipeline[1:])
        # mmseg stacks the images of a batch without padding them.
        self._equal_shapes = is_segmentor(cfg)
        self.broken: list[str] = []

    def __call__(
        self, images: Iterable[GivenImage | ImageError], batch_size: int = 1
    ) -> Iterator[Predicted]:
        """Yield the prediction of each readable image, in order.

        Segmentation splits batches at a change of the input size.
        """
        return self._predict(self._packed(images), batch_size)

    def _packed(
        self, images: Iterable[GivenImage | ImageError]
    ) -> Iterator[tuple[GivenImage, dict]]:
        """Each image with what the test pipeline makes of it."""
        for image, data in self._load(images):
            try:
                item = self._transformed(image, data)
            except ImageError as error:
                self.broken.append(str(error))
            else:
                yield image, item

    def _predict(
        self, items: Iterable[tuple[GivenImage, dict]], batch_size: int
    ) -> Iterator[Predicted]:
        """Predict for what :meth:`_packed` gives; with each one's share of the time."""
        for batch in self._batches(items, batch_size):
            begin = self._now()
            with torch.inference_mode(), self._autocast():
                samples = self._test_step(pseudo_collate([item for _, item in batch]))
            milliseconds = (self._now() - begin) * 1000 / len(batch)
            for (image, _), sample in zip(batch, samples, strict=True):
                yield Predicted(image, sample.cpu(), milliseconds)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _autocast(self) -> AbstractContextManager:
        if self._precision is None:
            return nullcontext()
        is_half = self._precision != torch.float32
        return torch.autocast(
            self.device.type, self._precision if is_half else None, enabled=is_half
        )

    def _load(
        self, images: Iterable[GivenImage | ImageError]
    ) -> Iterator[tuple[GivenImage, dict[str, Any]]]:
        """Each image with what the first step of the pipeline makes of it."""
        for index, image in enumerate(images):
            try:
                if isinstance(image, ImageError):
                    raise image
                data = {"img_path": image.source or image.name, "img_id": index}
                if image.pixels is not None:
                    yield image, data | self._as_read(image.pixels)
                elif is_url(image.source):
                    read = self._read_url(image.source)
                    yield replace(image, pixels=_as_bgr(read["img"])), read | data
                else:
                    yield image, self._read(data)
            except ImageError as error:
                self.broken.append(str(error))

    def _as_read(self, pixels: np.ndarray) -> dict[str, Any]:
        """What the pipeline's first step would make of a file with these pixels, BGR."""
        (load,) = self._read.transforms
        if not isinstance(load, LoadImageFromFile):
            raise UserError(
                "images in memory take the place of what the test pipeline's LoadImageFromFile reads, but "
                f"its first step is {type(load).__name__}: predict for files"
            )
        if load.color_type.startswith("grayscale"):
            pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
        size = pixels.shape[:2]
        pixels = pixels.astype(np.float32) if load.to_float32 else pixels
        return {"img": pixels, "img_shape": size, "ori_shape": size}

    def _read_url(self, url: str) -> dict[str, Any]:
        with TemporaryDirectory() as folder:
            path = Path(folder, "image")
            try:
                path.write_bytes(read_url(url, MAX_BYTES))
                return self._read({"img_path": str(path)})
            except DownloadError as error:
                raise ImageError(f"image {error}") from error
            except ImageError as error:
                raise ImageError(str(error).replace(str(path), url)) from error

    def _transformed(self, image: GivenImage, data: dict[str, Any]) -> dict[str, Any]:
        """What the rest of the pipeline makes of it; an ImageError if nothing is left of the image."""
        try:
            return self._transform(data)
        except Exception as error:
            if reason := too_narrow(error, image.source or image.name):
                raise ImageError(reason) from error
            raise

    def _batches(
        self, items: Iterable[tuple[GivenImage, dict]], batch_size: int
    ) -> Iterator[list[tuple[GivenImage, dict]]]:
        for _, alike in groupby(items, lambda pair: self._equal_shapes and pair[1]["inputs"].shape):
            while batch := list(islice(alike, batch_size)):
                yield batch


def _usable(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {device} cannot be used: {reason}: choose another, such as cpu"
        ) from error
    return found


def _as_bgr(image: np.ndarray) -> np.ndarray:
    """A pipeline's image as BGR (H, W, 3) of 8 bits."""
    image = image.clip(0, 255).astype(np.uint8)
    return cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image[..., :3]


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Load a checkpoint; returns its ``dataset_meta``, empty if it has none."""
    with checkpoints_read_once():
        check_checkpoint(path)
        checkpoint = load_checkpoint(model, path, map_location="cpu", logger="silent")
    check_fit(model, checkpoint.get("state_dict", checkpoint), path)
    meta = (checkpoint.get("meta") or {}).get("dataset_meta") or {}
    return {key.lower(): value for key, value in meta.items()}


def _tested_data(cfg: Config) -> tuple[dict[str, Any], list[dict]]:
    """What the tested data set says about itself without its files, and its pipeline for images alone."""
    dataset = datasets_under_test(cfg)[0]
    pipeline = list(dataset.pipeline)
    while "dataset" in dataset:
        dataset = dataset["dataset"]
        pipeline = [*dataset.get("pipeline", ()), *pipeline]
    kind = dataset.type
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    meta = dict(getattr(kind, "METAINFO", {})) | dict(dataset.get("metainfo") or {})
    without_truth = [deepcopy(step) for step in pipeline if not loads_annotations(step)]
    return {key.lower(): value for key, value in meta.items()}, without_truth


def replay_cuda_graphs(model: nn.Module) -> None:
    """:func:`~flatten_det.backbones.use_cuda_graphs`; a UserError for a model without our backbones."""
    try:
        use_cuda_graphs(model)
    except ValueError as error:
        raise UserError(f"--cuda-graphs: {error}: leave it out") from error
