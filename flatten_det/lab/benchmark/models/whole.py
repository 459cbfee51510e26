"""Whole detectors and segmentors of a config, on made-up images and annotations."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.models import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import Tensor, nn

OBJECTS = 8  # in each image
_SEGMENTS = 8  # a side: the label map is a grid of squares
_SEED = 0


def build_whole(cfg: Config) -> nn.Module:
    """The model of a config with random weights; no checkpoint is loaded."""
    model_cfg = ConfigDict(cfg.model.to_dict())
    model_cfg.pop("pretrained", None)
    for part in (model_cfg, model_cfg.backbone):
        part.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        model = MODELS.build(model_cfg)
        with _without_remarks():
            model.init_weights()
    return model


def network_call(model: nn.Module, images: Tensor) -> Callable[[], object]:
    """What is measured at inference: the network without post-processing, as multiply-adds count it.

    Two-stage detectors run their box heads on the proposals that come out (1000 at most) and their mask
    heads on the first 100 of them.

    Args:
        model: of MMDetection or MMSegmentation.
        images: ``(B, 3, H, W)``, normalised.
    """
    samples = make_samples(model, images)
    head = getattr(model, "decode_head", None)
    if head is not None and "batch_data_samples" in inspect.signature(head.forward).parameters:
        # MMSegmentation's own mode "tensor" forgets the samples.
        return lambda: head(model.extract_feat(images), samples)
    return lambda: model(images, samples, mode="tensor")


def loss_call(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """What is differentiated in training: the sum of all losses, against made-up annotations.

    Args:
        model: of MMDetection or MMSegmentation.
        images: ``(B, 3, H, W)``, normalised.
    """
    samples = make_samples(model, images)

    def call() -> Tensor:
        # Assigners change what they get.
        losses = model(images, [sample.clone() for sample in samples], mode="loss")
        return model.parse_losses(losses)[0]

    return call


def make_samples(model: nn.Module, images: Tensor) -> list[BaseDataElement]:
    """Annotated samples for a batch, the same for the same model and size.

    For segmentors a label map; for detectors 8 boxes with masks, and a label map where there is stuff.
    """
    generator = np.random.default_rng(_SEED)
    size = tuple(images.shape[-2:])
    meta = dict(
        img_shape=size,
        ori_shape=size,
        pad_shape=size,
        batch_input_shape=size,
        scale_factor=(1.0, 1.0),
        flip=False,
    )
    make = _segmented if isinstance(model, BaseSegmentor) else _detected
    return [make(model, meta, generator).to(images.device) for _ in images]


def _segmented(model: nn.Module, meta: dict, generator: np.random.Generator) -> SegDataSample:
    labels = _label_map(meta["img_shape"], 0, model.decode_head.num_classes, generator)
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))


def _detected(model: nn.Module, meta: dict, generator: np.random.Generator) -> DetDataSample:
    height, width = meta["img_shape"]
    centres = generator.uniform(0.2, 0.8, (OBJECTS, 2))
    # Areas from small to large, as in COCO.
    sides = np.geomspace(0.05, 0.4, OBJECTS)[:, None] / 2
    corners = np.concatenate([centres - sides, centres + sides], axis=1)
    boxes = np.clip(corners, 0, 1) * (width, height, width, height)
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
        mask[top : bottom + 1, left : right + 1] = 1
    things, stuff = _classes(model)
    sample = DetDataSample(metainfo=meta)
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32),
        labels=torch.from_numpy(generator.integers(0, things, OBJECTS)),
        masks=BitmapMasks(masks, height, width),
    )
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    if stuff:
        labels = _label_map((height, width), things, things + stuff, generator)
        sample.gt_sem_seg = PixelData(sem_seg=labels)
    return sample


def _classes(model: nn.Module) -> tuple[int, int]:
    """Numbers of classes of things and of stuff."""
    panoptic = getattr(model, "panoptic_head", None)
    if panoptic is not None:
        return panoptic.num_things_classes, panoptic.num_stuff_classes
    head = model.roi_head if hasattr(model, "roi_head") else model
    head = head.bbox_head
    head = head[0] if isinstance(head, nn.ModuleList) else head
    return head.num_classes, 0


def _label_map(
    size: tuple[int, int], first: int, end: int, generator: np.random.Generator
) -> Tensor:
    coarse = torch.from_numpy(generator.integers(first, end, (1, 1, _SEGMENTS, _SEGMENTS)))
    fine = nn.functional.interpolate(coarse.to(torch.uint8), size=size, mode="nearest")
    return fine[0].long()


@contextmanager
def _without_remarks() -> Iterator[None]:
    """mmengine logs how it initialised each of hundreds of parameters."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
