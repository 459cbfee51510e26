"""Whether the kernels can be used: in this process, and for a call."""

import importlib
from functools import cache

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Earlier ones were not tried; tuples of tensors in kernels are young.
MINIMUM_TRITON = (3, 6)


@cache
def unavailable_reason() -> str | None:
    """Why the kernels cannot be used in this process, or None."""
    try:
        triton = importlib.import_module("triton")
        importlib.import_module("triton.language")
    except Exception as error:
        # A Triton that does not fit the system fails in its native parts, not only with ImportError.
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < MINIMUM_TRITON:
        return f"triton {triton.__version__}, the kernels need {'.'.join(map(str, MINIMUM_TRITON))}"
    return None


def available() -> bool:
    """Whether Triton can be imported. Whether it serves a call, :func:`supported` says."""
    return unavailable_reason() is None


def supported(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, focusing_factor: float
) -> str | None:
    """Whether the kernels serve this call.

    Args:
        q, k, v: ``(B, N, C)``, ``(B, M, C)``, ``(B, M, C)``.
        num_heads: h.
        focusing_factor: p.

    Returns:
        None, or in a few words why not.
    """
    C = q.shape[-1]
    head_dim = C // num_heads
    if focusing_factor != 3:
        return f"focusing_factor={focusing_factor}, the kernels have 3"
    if k.shape != q.shape or v.shape != q.shape:
        return f"{k.shape[1]} keys for {q.shape[1]} queries, the kernels need as many"
    if q.numel() == 0:
        return "there are no tokens"
    for x in (q, k, v):
        if x.dtype not in DTYPES:
            return f"{x.dtype}, the kernels take float32, float16 and bfloat16"
    if C % 8 or C > 1024:
        return f"C={C}, the kernels take multiples of 8 up to 1024"
    if not 16 <= head_dim <= 64:
        return f"head dimension {head_dim}, the kernels take 16 to 64"
    return unavailable_reason() or _device_reason(q, k, v)


def _device_reason(*tensors: Tensor) -> str | None:
    devices = {x.device for x in tensors}
    if len(devices) > 1:
        return f"tensors on {' and '.join(sorted(map(str, devices)))}"
    (device,) = devices
    if device.type == "cpu":
        interpreted = importlib.import_module(".launch", __package__).interpreted()
        return None if interpreted else "tensors on the CPU without TRITON_INTERPRET=1"
    if device.type != "cuda":
        return f"tensors on {device.type}, the kernels need CUDA or ROCm"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return None
