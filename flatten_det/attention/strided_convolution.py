"""Strided convolutions, which oneDNN computes wrongly in bfloat16.

Seen with torch 2.15 on a CPU with AVX512-BF16: for maps one to seven tokens wide, or few channels, the
output or the gradient of the weight is something else altogether, up to whatever the memory held before
(``tests/attention/test_strided_convolution.py`` has a look at it). They are so small a part of a backbone
that float32 costs nothing that could be measured.
"""

import torch
from torch import Tensor, nn


def strided_convolution(conv: nn.Conv2d, image: Tensor) -> Tensor:
    """``conv(image)``; in float32 under the CPU's autocast.

    Args:
        conv: any convolution with strides.
        image: ``(B, C, H, W)``.
    """
    if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return conv(image)
    with torch.autocast("cpu", enabled=False):
        return conv(image.float())
