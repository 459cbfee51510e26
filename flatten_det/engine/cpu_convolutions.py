"""Convolutions in float32 where the CPU's half precision is slow or wrong."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def keep_convolutions_in_float32(model: nn.Module) -> None:
    """Take convolutions of a model out of the CPU's autocast, those of necks and heads included.

    - In float16 all of them: oneDNN has no kernels for their gradients, and its plain loops took 130 times
      as long as float32 (a 3x3 convolution of 64 channels: 2.5 s instead of 19 ms).
    - In bfloat16 those with strides: see :func:`flatten_det.attention.maps.strided_convolution`.

    Each module gets a ``forward`` of its own: a mode of torch would not reach what checkpointing computes
    again in the backward pass. Without autocast they compute what they always did.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            has_stride = any(step > 1 for step in module.stride)
            module.forward = partial(_forward, module.forward, has_stride)


def _forward(forward: Callable[..., Tensor], has_stride: bool, image: Tensor, *args) -> Tensor:
    if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return forward(image, *args)
    if not has_stride and torch.get_autocast_dtype("cpu") != torch.float16:
        return forward(image, *args)
    with torch.autocast("cpu", enabled=False):
        return forward(image.float(), *args)
