"""Telling backbones what a detector or segmentor is called with."""

from typing import Any

from mmengine.model import BaseModel
from torch import nn

from .valid_region import valid_regions


def _call(model: BaseModel, *args: Any, **kwargs: Any) -> Any:
    images = kwargs.get("inputs", args[0] if args else None)
    data_samples = kwargs.get("data_samples", args[1] if len(args) > 1 else None)
    with valid_regions(images, data_samples):
        return nn.Module.__call__(model, *args, **kwargs)


def tell_backbones_of_padding() -> None:
    """Let every model of mmengine, MMDetection's and MMSegmentation's among them, pass on its data samples.

    Their backbones are given images alone. The class is the one place that all calls go through: of
    training loops, also distributed, of evaluation, of inferencers and of one's own code.
    """
    BaseModel.__call__ = _call
