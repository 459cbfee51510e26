"""Convolutions in float32 where the CPU's half precision is slow or wrong."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    torch.conv_transpose1d,
    torch.conv_transpose2d,
    torch.conv_transpose3d,
}


class CPUConvolutions(TorchFunctionMode):
    """Takes convolutions out of the CPU's autocast, those of necks and heads included:

    - in float16 all of them: oneDNN has no kernels for their gradients, and its plain loops took 130 times
      as long as float32 (a 3x3 convolution of 64 channels: 2.5 s instead of 19 ms);
    - in bfloat16 those with strides: see :mod:`flatten_det.attention.strided_convolution`.

    It acts where it is entered, so that what checkpointing computes again in the backward pass needs it
    there too.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch in place of every function."""
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS or not _needs_float32(args, kwargs):
            return func(*args, **kwargs)
        args = tuple(_full(value) for value in args)
        with torch.autocast("cpu", enabled=False):
            return func(*args, **{name: _full(value) for name, value in kwargs.items()})


def _needs_float32(args: tuple, kwargs: dict[str, Any]) -> bool:
    if not torch.is_autocast_enabled("cpu"):
        return False
    if torch.get_autocast_dtype("cpu") == torch.float16:
        return True
    stride = kwargs.get("stride", args[3] if len(args) > 3 else 1)
    return any(step != 1 for step in ([stride] if isinstance(stride, int) else stride))


def _full(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value
