"""The model whose attention is analysed, and its images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ...backbones import BACKBONES, build_backbone
from ...backbones.weights import load_backbone
from ...config import blame_config
from ...data.loading import ImageError, image_error
from ...errors import UserError, did_you_mean
from ...files.checkpoints import read_checkpoint
from ...files.images import pixel_limit, set_pixel_limit, why_not_decoded
from ...predict.engine import load_weights
from ..complexity.target import Target

# Table 4 and Figures 3 and 5: attention exchanged in the same network. Name -> its backbone, and changes.
DEIT_ABLATION: dict[str, tuple[str, dict[str, Any]]] = {
    "deit-t-softmax": ("deit-t", {}),
    "deit-t-linear": ("flatten-deit-t", dict(focusing_factor=1, kernel_size=0)),
    "deit-t-focused": ("flatten-deit-t", dict(kernel_size=0)),
    "deit-t-focused-dwc": ("flatten-deit-t", {}),
}
NAMES = (*BACKBONES, *DEIT_ABLATION)


def named_target(name: str) -> Target:
    """The target of a backbone's name; UserError if there is no such name."""
    if name not in NAMES:
        hint = did_you_mean(name, NAMES)
        raise UserError(f"no model has the name {name}: {hint}Names are {', '.join(NAMES)}")
    return Target(name, None)


def build_named(name: str) -> nn.Module:
    """The backbone of one of :data:`NAMES`, with random weights."""
    backbone, changes = DEIT_ABLATION.get(name, (name, {}))
    return build_backbone(backbone, **changes)


# Of ImageNet, RGB: what the backbones were pretrained with.
_IMAGENET = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr_to_rgb=True)


@dataclass(frozen=True)
class AnalysedModel:
    """A backbone and the preparation of its images."""

    backbone: nn.Module  # in evaluation mode, on the CPU
    size: tuple[int, int]  # (H, W) in pixels that images are resized to
    normalisation: Mapping[str, Any]  # mean, std and bgr_to_rgb, as of a data preprocessor
    max_pixels: int  # of an image that is decoded

    def read(self, path: str | Path) -> tuple[np.ndarray, Tensor]:
        """An image, resized: ``(H, W)`` from 0 to 1 to draw upon, and ``(1, 3, H, W)`` for the backbone.

        ImageError says that it is missing, too large or cannot be decoded.
        """
        set_pixel_limit(self.max_pixels)
        problem = why_not_decoded(path) if Path(path).is_file() else image_error(path)
        if problem:
            raise ImageError(problem)
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise ImageError(image_error(path) or f"image {path} cannot be decoded: remove it")
        height, width = self.size
        shrinks = image.shape[0] * image.shape[1] > height * width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=method)
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) / 255
        mean, std = (np.array(self.normalisation[name]) for name in ("mean", "std"))
        pixels = mmcv.imnormalize(image, mean, std, self.normalisation["bgr_to_rgb"])
        return grey, torch.from_numpy(pixels).permute(2, 0, 1)[None]


def load_model(
    target: Target, checkpoint: str | None, size: tuple[int, int] | None
) -> AnalysedModel:
    """Build what a command line names: the backbone of a config's model, or one of :data:`NAMES`.

    Args:
        checkpoint: for a config what was trained with it, for a backbone official classification weights or
            its own; None: weights are random.
        size: ``(H, W)`` of the images; None: what the config trains on, 224 x 224 for a backbone.

    Raises:
        UserError: the checkpoint does not fit, or the config's model has no backbone.
    """
    torch.manual_seed(0)
    if target.cfg is None:
        backbone = build_named(target.name)
        if checkpoint is not None:
            load_backbone(backbone, read_checkpoint(checkpoint), checkpoint)
        normalisation, max_pixels = _IMAGENET, pixel_limit(Config())
    else:
        with blame_config(target.cfg):
            backbone = _backbone_of(target, checkpoint)
            preprocessor = target.cfg.model.get("data_preprocessor") or {}
            normalisation = {
                name: preprocessor.get(name, default) for name, default in _IMAGENET.items()
            }
            max_pixels = pixel_limit(target.cfg)
    backbone.eval()  # MMDetection's ResNet returns None.
    return AnalysedModel(backbone, size or target.size(), normalisation, max_pixels)


def _backbone_of(target: Target, checkpoint: str | None) -> nn.Module:
    cfg = target.cfg
    init_default_scope(cfg.get("default_scope", "mmdet"))
    model = MODELS.build(cfg.model)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    elif hasattr(model, "backbone"):
        model.backbone.init_weights()
    if not hasattr(model, "backbone"):
        raise UserError(f"{target.name}: its model has no backbone: give one with a backbone")
    return model.backbone
