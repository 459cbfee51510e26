"""What a backbone, a detector or a segmentor costs on one image, and which one is meant."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ...backbones import BACKBONES, build_backbone
from ...config import blame_config, datasets_under_test, load_config, our_configs, type_name
from ...data.shapes.options import ShapesOptions
from ...errors import UserError, did_you_mean
from .counter import Complexity, count_macs

_CLASSIFICATION_SIZE = (224, 224)
# Detection papers count at 1280x800, for images of at most 1333x800.
_COUNTED_INSTEAD = {(800, 1333): (800, 1280)}
# What two-stage detectors are counted with: proposals of the RPN, and detections that get a mask.
_PROPOSALS, _DETECTIONS = 1000, 100
# Of segmentors, MaskFormer's relatives and single-stage detectors.
_HEADS = ("decode_head", "panoptic_head", "bbox_head")


@dataclass(frozen=True)
class Target:
    """A config or a backbone."""

    name: str  # as given
    cfg: Config | None  # of the config file; None: `name` is a backbone
    is_changed: bool = False  # options on the command line changed the config

    def size(self) -> tuple[int, int]:
        """``(H, W)`` of the images if nothing else is said: the config's, or 224x224."""
        if self.cfg is None:
            return _CLASSIFICATION_SIZE
        with blame_config(self.cfg):
            return training_size(self.cfg)

    def count(self, size: tuple[int, int]) -> Complexity:
        """Count it for images of ``(H, W)`` pixels; UserError for what is no model that can be counted."""
        if self.cfg is None:
            with torch.device("meta"):
                backbone = build_backbone(self.name)
            return count_backbone(backbone, size)
        with blame_config(self.cfg):
            return count_model(build_without_values(self.cfg), size)


def find_target(text: str, cfg_options: dict[str, Any] | None = None) -> Target:
    """The config file or backbone that is meant; UserError for what is neither, or has no model."""
    if text in BACKBONES:
        if cfg_options:
            raise UserError(f"--cfg-options changes configs, and {text} is a backbone: drop it")
        return Target(text, None)
    if not text.endswith(".py") and not Path(text).is_file() and text not in our_configs():
        hint = did_you_mean(text, [*BACKBONES, *our_configs()])
        raise UserError(
            f"{text} is neither a config file nor a backbone: {hint}Backbones are {', '.join(BACKBONES)}"
        )
    cfg = load_config(text, cfg_options)
    if "model" not in cfg:
        raise UserError(f"config file {text}: it has no model: give the config of a whole model")
    return Target(text, cfg, bool(cfg_options))


def training_size(cfg: Config) -> tuple[int, int]:
    """``(H, W)`` in pixels of the images, or crops, that a config trains on.

    Where they vary, it is the size that it tests at, or what papers count it as. UserError if the config
    does not say.
    """
    preprocessor = cfg.model.get("data_preprocessor") or {}
    fixed = [preprocessor, *(preprocessor.get("batch_augments") or ())]
    size = next((part["size"] for part in fixed if part.get("size")), None)
    if size is None:
        dataset = datasets_under_test(cfg)[0] if cfg.get("test_dataloader") else {}
        scales = (
            step["scale"]
            for step in dataset.get("pipeline", ())
            if type_name(step) == "Resize" and "scale" in step
        )
        scale = next(scales, None)
        if scale is None and "image_size" in dataset:  # Shapes, as it was rendered.
            return ShapesOptions.taken_from(dict(dataset)).image_size_range[1]
        if scale is None:
            raise UserError(
                f"config file {cfg.filename}: no image size, neither in data_preprocessor nor in a Resize "
                "of the test pipeline: add one, or give --shape H W"
            )
        size = (min(scale), max(scale))
    return _COUNTED_INSTEAD.get(tuple(size), tuple(size))


def build_without_values(cfg: Config, **backbone: Any) -> nn.Module:
    """The model of a config on the meta device: it has shapes, but no values, and takes no memory.

    ``backbone`` has arguments that replace or extend those of its backbone.
    """
    model = cfg.model
    if backbone:
        model = {**model, "backbone": {**model.backbone, **backbone}}
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")), torch.device("meta"):
        return MODELS.build(model)


def count_backbone(backbone: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count a backbone, built on the meta device and of no other use afterwards, on ``(H, W)`` pixels."""
    return _count_by_shapes(backbone, size, backbone)


def count_model(model: nn.Module, size: tuple[int, int]) -> Complexity:
    """Count a model of MMDetection or MMSegmentation on ``(H, W)`` pixels, without its post-processing.

    Counted are the backbone, the neck and the heads that predict: of a two-stage detector the RPN, each
    box head on 1000 proposals and each mask head on 100 detections. A segmentor's auxiliary head counts
    as parameters only. Nothing is computed, except for DETR's and MaskFormer's relatives: what these
    run depends on values, so that they take seconds. The model is built as for :func:`count_backbone`;
    ValueError for one of another make.
    """
    # An image without padding.
    metainfo = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    samples = [BaseDataElement(metainfo=metainfo)]
    if hasattr(model, "roi_head"):
        return _count_by_shapes(model, size, lambda images: _two_stages(model, images))
    if hasattr(model, "pre_transformer"):
        return _count_by_values(model, size, lambda images: model(images, samples, mode="tensor"))
    head = next((getattr(model, name) for name in _HEADS if hasattr(model, name)), None)
    if head is None:
        raise ValueError(
            f"cannot count a {type(model).__name__}: none of {', '.join(_HEADS)} in it"
        )
    if "batch_data_samples" in inspect.signature(head.forward).parameters:
        return _count_by_values(
            model, size, lambda images: head(model.extract_feat(images), samples)
        )
    return _count_by_shapes(model, size, lambda images: head(model.extract_feat(images)))


def _two_stages(model: nn.Module, images: Tensor) -> None:
    model.rpn_head(model.extract_feat(images))
    for part, count in (("bbox", _PROPOSALS), ("mask", _DETECTIONS)):
        # A mask head without an extractor of its own shares the boxes'.
        extractors = _stages(model.roi_head, f"{part}_roi_extractor") or _stages(
            model.roi_head, "bbox_roi_extractor"
        )
        for stage, head in enumerate(_stages(model.roi_head, f"{part}_head")):
            map_size = extractors[stage].roi_layers[0].output_size
            head(torch.zeros(count, head.in_channels, *map_size))


def _stages(roi_head: nn.Module, part: str) -> list[nn.Module]:
    """A cascade has several of each part, other detectors one or none."""
    found = getattr(roi_head, part, None)
    if isinstance(found, nn.ModuleList):
        return list(found)
    return [] if found is None else [found]


def _count_by_shapes(
    model: nn.Module, size: tuple[int, int], run: Callable[[Tensor], object]
) -> Complexity:
    # Not on the meta device itself, for which there is no autocast.
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        images = torch.empty(1, 3, *size)
        return count_macs(model, lambda: run(images))


def _count_by_values(
    model: nn.Module, size: tuple[int, int], run: Callable[[Tensor], object]
) -> Complexity:
    # Module tracking takes views of parameters for inputs with a gradient.
    model.requires_grad_(False)
    model.to_empty(device="cpu")
    for tensor in chain(model.parameters(), model.buffers()):
        tensor.zero_()
    images = torch.zeros(1, 3, *size)
    return count_macs(model, lambda: run(images))
