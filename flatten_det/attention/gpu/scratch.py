"""The one place where the kernels' outputs and scratch memory are allocated."""

import torch
from torch import Tensor


def empty(*shape: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unwritten contiguous memory on the device of ``like``; tests fill it with NaN."""
    return torch.empty(shape, dtype=dtype, device=like.device)
