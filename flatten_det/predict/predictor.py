"""A trained detector or segmentor as a Python object: images in, predictions out."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import torch
from mmdet.structures import INSTANCE_OFFSET
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData

from ..compat.panoptic_api import VOID
from ..config import StageHook, blame_config, load_config
from ..data.loading import ImageError, left_out
from ..data.tiling import Tiling
from ..errors import UserError, did_you_mean
from ..results import Prediction, Segment
from ..results.prediction import label_type
from .engine import Predicted, SamplePredictor, replay_cuda_graphs
from .inputs import GivenImage, Images, given_images
from .tiles import TiledPredictor

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PredictionWarning(UserWarning):
    """Weights are random, or an image is left out."""


class Predictor:
    """Predicts for images of any form: detections, instances, label maps, panoptic segments.

    An image is a file, a folder of such, a glob pattern, an address (http, https), a PIL image, an array
    (H, W, 3), (H, W) or (H, W, 4) of uint8, or a tensor (3, H, W) of uint8 or of floats from 0 to 1; several
    are a list, a generator, or whatever else can be iterated over, of mixed forms. Colours are RGB. All
    forms take the road of the config's test pipeline, and the same pixels give the same prediction.

    An image of which there is no prediction is left out with a warning, and the others are done.

    Args:
        model: name of a config of this package, path of a config file, or a config.
        weights: path or URL of a checkpoint; None: random weights, with a warning.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto``: a GPU if there is one.
        precision: of the model: ``fp32``, ``fp16``, ``bf16``; ``auto``: fp16 on a GPU, else fp32.
        batch_size: images, or tiles, that go through the model at once.
        full_size: leave images, or tiles, at their own size, instead of resizing them as the config says.
        tiling: for detectors, how to cut images, or the side of the tiles; what these show is merged.
        bgr: arrays have their colours in the order of OpenCV.
        cuda_graphs: replay the backbone from CUDA graphs, see :func:`~flatten_det.backbones.use_cuda_graphs`.
        on_tile: called with the number of tiles done, and of all, of the image at hand.

    Attributes:
        names: class names, by label.
        model: the framework's model, in evaluation mode.
        device: where it is.
        max_pixels: larger images are not decoded.
        broken: of the last call, one line for each image that was left out.

    Raises:
        UserError: there is no such model, checkpoint or device, or they do not fit.
    """

    def __init__(
        self,
        model: str | PathLike | Config,
        weights: str | PathLike | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        *,
        batch_size: int = 1,
        full_size: bool = False,
        tiling: Tiling | int | None = None,
        bgr: bool = False,
        cuda_graphs: bool = False,
        on_tile: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: give at least 1")
        self._cfg = model if isinstance(model, Config) else load_config(model)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        checkpoint = None if weights is None else str(weights)
        options: dict[str, Any] = {
            "full_size": full_size,
            "precision": _precision(precision, str(device)),
        }
        if isinstance(tiling, int):
            try:
                tiling = Tiling(tiling)
            except ValueError as error:
                raise UserError(str(error)) from error
        with blame_config(self._cfg):
            if tiling is None:
                self._engine = SamplePredictor(self._cfg, checkpoint, device, **options)
            else:
                options |= {"tiling": tiling, "on_tile": on_tile}
                self._engine = TiledPredictor(self._cfg, checkpoint, device, **options)
            if cuda_graphs:
                replay_cuda_graphs(self._engine.model)
            names = self._engine.dataset_meta.get("classes")
            if not names:
                raise UserError(
                    f"config file {self._cfg.filename} names no classes: add metainfo=dict(classes=(...)) to "
                    "the data set of its test_dataloader"
                )
            self.names = tuple(names)
        self.model, self.device = self._engine.model, self._engine.device
        self.max_pixels = self._engine.max_pixels
        self.broken: list[str] = []
        self._palette = _palette(self._engine.dataset_meta.get("palette"), len(self.names))
        self._batch_size = batch_size
        self._bgr = bgr
        self._has_begun = False
        if weights is None:
            warnings.warn(
                "no weights given: they, and so predictions, are random",
                PredictionWarning,
                stacklevel=2,
            )

    def __call__(self, images: Images) -> list[Prediction]:
        """Predict for one or more images.

        Raises:
            UserError: for none of them there is a prediction; the message says why.
        """
        return list(self.stream(images))

    def stream(self, images: Images) -> Iterator[Prediction]:
        """Yield the prediction of one image after the other; for folders, generators and other long things.

        Raises:
            UserError: in the end, for none of them there is a prediction.
        """
        self.broken = self._engine.broken = broken = []
        given = given_images(images, self._bgr, self.max_pixels)
        count = warned = 0
        with blame_config(self._cfg) as stage:
            stage.has_begun = self._has_begun
            samples = self._engine(_not_blamed(given, stage), self._batch_size)
            for predicted in chain(samples, [None]):
                for reason in broken[warned:]:
                    warnings.warn(reason, PredictionWarning, stacklevel=2)
                warned = len(broken)
                if predicted is not None:
                    self._has_begun = stage.has_begun = True
                    count += 1
                    yield as_prediction(predicted, self.names, self._palette)
        if count == 0:
            several = left_out(broken, len(broken))
            raise several if len(broken) > 1 else UserError(*broken or ["there are no images"])


def _not_blamed(
    images: Iterator[GivenImage | ImageError], stage: StageHook
) -> Iterator[GivenImage | ImageError]:
    """Images from the caller, whose own errors are none of the config's."""
    while True:
        before, stage.has_begun = stage.has_begun, True
        image = next(images, None)
        stage.has_begun = before
        if image is None:
            return
        yield image


def _precision(name: str, device: str) -> torch.dtype:
    if name == "auto":
        name = "fp16" if device.startswith("cuda") else "fp32"
    if name not in PRECISIONS:
        meant = did_you_mean(name, PRECISIONS)
        raise UserError(f"precision {name} is unknown: {meant}give {', '.join(PRECISIONS)} or auto")
    return PRECISIONS[name]


def _palette(colours: Any, count: int) -> Sequence[Sequence[int]] | None:
    """The data set's colours if it has one for each class; it may name a palette of its framework instead."""
    is_list = isinstance(colours, Sequence) and not isinstance(colours, str)
    return colours if is_list and len(colours) >= count else None


def as_prediction(
    predicted: Predicted, names: Sequence[str], palette: Sequence[Sequence[int]] | None
) -> Prediction:
    """What a model gave for an image, with the names and colours of its classes."""
    image, sample, milliseconds = predicted
    fields: dict[str, Any] = {}
    if "pred_instances" in sample:
        fields |= _objects(sample.pred_instances)
    if "pred_panoptic_seg" in sample:
        fields |= _segments(sample, len(names))
    if "pred_sem_seg" in sample:
        # Those of a model with one channel are floats.
        labels = sample.pred_sem_seg.data.squeeze(0).numpy()
        fields["label_map"] = labels.astype(label_type(len(names)))
    return Prediction(
        image.source,
        tuple(map(int, sample.ori_shape[:2])),
        tuple(names),
        **fields,
        palette=palette,
        milliseconds=milliseconds,
        pixels=None if image.pixels is None else image.pixels[..., ::-1],
    )


def _objects(found: InstanceData) -> dict[str, Any]:
    # Most models give the best first. A stable order leaves theirs as it is.
    found = found[found.scores.argsort(descending=True, stable=True)]
    fields = {
        "boxes": found.bboxes.float().numpy().reshape(-1, 4),
        "scores": found.scores.float().numpy(),
        "labels": found.labels.numpy().astype(np.int64),
    }
    if "masks" in found:
        masks = found.masks
        rles = masks if isinstance(masks, list) else encode_mask_results(masks.numpy())
        fields["masks"] = [
            {"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles
        ]
    return fields


def _segments(sample: BaseDataElement, count: int) -> dict[str, Any]:
    ids = sample.pred_panoptic_seg.sem_seg.squeeze(0).numpy()
    # mmdet's ids are label + 1000 · number, and the label after the last one is void.
    ids = np.where(ids % INSTANCE_OFFSET < count, ids, VOID)
    areas = zip(*map(np.ndarray.tolist, np.unique(ids, return_counts=True)), strict=True)
    return {
        "segment_ids": ids.astype(np.int32),
        "segments": [
            Segment(id_, id_ % INSTANCE_OFFSET, area) for id_, area in areas if id_ != VOID
        ],
    }
