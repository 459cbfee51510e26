"""What a backbone, a detector or a segmentor costs on one image."""

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .counter import Complexity, count_macs

Run = Callable[[Tensor], object]

# What two-stage detectors are counted with: proposals of the RPN, and detections that get a mask.
PROPOSALS, DETECTIONS = 1000, 100
# Of segmentors, MaskFormer's relatives and single-stage detectors.
HEADS = ("decode_head", "panoptic_head", "bbox_head")


def build_without_values(cfg: Config, **backbone: Any) -> nn.Module:
    """The model of a config on the meta device: it has shapes, but no values, and takes no memory.

    Args:
        cfg: of MMDetection or MMSegmentation.
        backbone: arguments that replace or extend those of its backbone.
    """
    model = cfg.model
    if backbone:
        model = {**model, "backbone": {**model.backbone, **backbone}}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")), torch.device("meta"):
        return MODELS.build(model)


def count_backbone(backbone: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count a backbone.

    Args:
        backbone: built on the meta device (``with torch.device("meta")``); it is of no other use
            afterwards.
        size: ``(H, W)`` of the image in pixels.
    """
    return _count_by_shapes(backbone, size, backbone)


def count_model(model: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count a model of MMDetection or MMSegmentation, without its post-processing.

    Counted are the backbone, the neck and the heads that predict: of a two-stage detector the RPN, each
    box head on 1000 proposals and each mask head on 100 detections. A segmentor's auxiliary head counts
    as parameters only. Nothing is computed, except for DETR's and MaskFormer's relatives: what these
    run depends on values, so that they take seconds.

    Args:
        model: built on the meta device (``with torch.device("meta")``); it is of no other use
            afterwards.
        size: ``(H, W)`` of the image in pixels.

    Raises:
        ValueError: for a model of another make.
    """
    samples = [_sample(size)]
    if hasattr(model, "roi_head"):
        return _count_by_shapes(model, size, lambda images: _two_stages(model, images))
    if hasattr(model, "pre_transformer"):
        return _count_by_values(model, size, lambda images: model(images, samples, mode="tensor"))
    head = next((getattr(model, name) for name in HEADS if hasattr(model, name)), None)
    if head is None:
        raise ValueError(f"cannot count a {type(model).__name__}: none of {', '.join(HEADS)} in it")
    if "batch_data_samples" in inspect.signature(head.forward).parameters:
        return _count_by_values(
            model, size, lambda images: head(model.extract_feat(images), samples)
        )
    return _count_by_shapes(model, size, lambda images: head(model.extract_feat(images)))


def _two_stages(model: nn.Module, images: Tensor) -> None:
    model.rpn_head(model.extract_feat(images))
    for part, count in (("bbox", PROPOSALS), ("mask", DETECTIONS)):
        heads = _stages(getattr(model.roi_head, f"{part}_head", None))
        for stage, head in enumerate(heads):
            map_size = _roi_size(model.roi_head, part, stage)
            head(torch.zeros(count, head.in_channels, *map_size))


def _stages(part: nn.Module | None) -> list[nn.Module]:
    """A cascade has several of each part, other detectors one or none."""
    if isinstance(part, nn.ModuleList):
        return list(part)
    return [] if part is None else [part]


def _roi_size(roi_head: nn.Module, part: str, stage: int) -> tuple[int, int]:
    """``(H, W)`` of the maps that a head gets of each region."""
    # A mask head without an extractor of its own shares the boxes'.
    extractors = _stages(getattr(roi_head, f"{part}_roi_extractor", None)) or _stages(
        roi_head.bbox_roi_extractor
    )
    return extractors[stage].roi_layers[0].output_size


def _sample(size: tuple[int, int]) -> BaseDataElement:
    """The annotation of an image without padding."""
    return BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    )


def _count_by_shapes(model: nn.Module, size: tuple[int, int], run: Run) -> Complexity:
    # Not on the meta device itself, for which there is no autocast.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        images = torch.empty(1, 3, *size)
        return count_macs(model, lambda: run(images))


def _count_by_values(model: nn.Module, size: tuple[int, int], run: Run) -> Complexity:
    # Module tracking takes views of parameters for inputs with a gradient.
    model.requires_grad_(False)
    model.to_empty(device="cpu")
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.zero_()
    images = torch.zeros(1, 3, *size)
    return count_macs(model, lambda: run(images))
