"""A trained model with its test pipeline, for images outside any data set."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import nn

from ..backbones import use_cuda_graphs
from ..config import datasets_under_test, is_segmentor, loads_annotations, type_name
from ..data.loading import CheckedPipeline, ImageError
from ..errors import UserError
from ..files.checkpoints import check_checkpoint, check_fit
from ..files.images import pixel_limit
from .segmentation import predict_in_bands_when_large

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


class Predictor:
    """Predicts for image files with a detector or a segmentor, in batches.

    Other than mmdet's and mmseg's inferencers it is the same for both, names a broken image and
    goes on without it, and leaves the names of the results to the caller.

    Args:
        cfg: A complete config.
        checkpoint: Weights; without any the model keeps its random ones.
        device: Where to run, such as ``cpu`` or ``cuda:0``.
        full_size: Predict at the size of the image, instead of resizing it as the test pipeline does.
        model: One that is built and has its weights already.

    Attributes:
        model: In evaluation mode, on the device.
        dataset_meta: ``classes`` and ``palette``, from the checkpoint or else the config.
        visualizer: Draws predictions with these.
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
    ) -> None:
        init_default_scope(cfg.get("default_scope", "mmdet"))
        self.model = (model or revert_sync_batchnorm(MODELS.build(cfg.model))).eval()
        self.dataset_meta, pipeline = _tested_data(cfg)
        if checkpoint is not None:
            self.dataset_meta |= load_weights(self.model, checkpoint)
        try:
            self.model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--device {device} cannot be used: {reason}") from error
        predict_in_bands_when_large(self.model)
        self._test_step = self.model.test_step
        self._max_pixels = pixel_limit(cfg)
        pipeline = without_resizing(pipeline) if full_size else pipeline
        self._pipeline = CheckedPipeline(pipeline, self._max_pixels)
        # mmseg stacks the images of a batch without padding them.
        self._equal_shapes = is_segmentor(cfg)
        self.visualizer = VISUALIZERS.build(
            cfg.visualizer | {"name": f"predictor-{id(self)}", "vis_backends": None}
        )
        self.visualizer.dataset_meta = self.dataset_meta
        self.broken: list[str] = []

    def __call__(self, paths: Sequence[str], batch_size: int = 1) -> Iterator[BaseDataElement]:
        """Yield the prediction of each readable image, in order.

        Segmentation splits batches at a change of the input size.
        """
        yield from self._predict(self._load(paths), batch_size)

    def _predict(self, items: Iterable[dict], batch_size: int) -> Iterator[BaseDataElement]:
        """Predict for what the test pipeline gives."""
        for batch in self._batches(items, batch_size):
            with torch.inference_mode():
                samples = self._test_step(pseudo_collate(batch))
            for sample in samples:
                yield sample.cpu()

    def _load(self, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        for index, path in enumerate(paths):
            try:
                yield self._pipeline({"img_path": path, "img_id": index})
            except ImageError as error:
                self.broken.append(str(error))

    def _batches(self, items: Iterable[dict], batch_size: int) -> Iterator[list[dict]]:
        batch: list[dict] = []
        for item in items:
            other_shape = batch and batch[0]["inputs"].shape != item["inputs"].shape
            if len(batch) == batch_size or (self._equal_shapes and other_shape):
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch


def load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Load a checkpoint; returns its ``dataset_meta``, empty if it has none."""
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
