"""Which implementation computes focused linear attention."""

import logging
import os
from functools import cache

import torch
from torch import Tensor

from . import ops, reference

VARIABLE = "FLATTEN_DET_ATTENTION"
REFERENCE, TILED, TRITON = IMPLEMENTATIONS = ("reference", "tiled", "triton")
_FAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_logger = logging.getLogger(__name__)


def focused_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    hw_shape: tuple[int, int],
    positions: Tensor | None = None,
    scale: Tensor | None = None,
    dwc_weight: Tensor | None = None,
    dwc_bias: Tensor | None = None,
    focusing_factor: float = 3,
    eps: float = 1e-6,
    floor: Tensor | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Focused linear attention by the fastest implementation that is known to be right for the inputs.

    Arguments and result are those of
    :func:`~flatten_det.attention.reference.focused_linear_attention`, which says what is computed.

    Args:
        implementation: ``'reference'`` (the equation), ``'tiled'`` (CPU) or ``'triton'`` (CUDA);
            None: the environment variable ``FLATTEN_DET_ATTENTION``, or else the fastest that is proven:
            ``'tiled'`` on the CPU, ``'reference'`` elsewhere.

    Raises:
        ValueError: for an unknown implementation, or one that cannot compute this; the message says why.
    """
    chosen = choose(q, k, v, num_heads, focusing_factor, implementation)
    if chosen == TRITON and floor is not None:
        chosen = REFERENCE  # The kernels take scale and eps themselves.
    log_choice(chosen, v)
    if chosen == REFERENCE:
        return reference.focused_linear_attention(
            q,
            k,
            v,
            num_heads=num_heads,
            hw_shape=hw_shape,
            positions=positions,
            scale=scale,
            dwc_weight=dwc_weight,
            dwc_bias=dwc_bias,
            focusing_factor=focusing_factor,
            eps=eps,
            floor=floor,
        )
    # Fewer keys than queries: V is stretched before its convolution, which is no part of the operator.
    is_reduced = k.shape[1] != q.shape[1]
    weight, bias = (None, None) if is_reduced else (dwc_weight, dwc_bias)
    out, _, _ = ops.attention(
        q, k, v, positions, scale, weight, bias, floor, num_heads, *hw_shape, eps
    )
    if is_reduced and dwc_weight is not None:
        with torch.autocast(q.device.type, enabled=False):
            values = reference.depthwise_values(
                v.float(), dwc_weight.float(), _float(dwc_bias), num_heads, hw_shape
            )
        out = (out + values).to(v.dtype)
    return out


def choose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    focusing_factor: float,
    implementation: str | None = None,
) -> str:
    """The implementation for these inputs; arguments and errors as above."""
    forced = implementation or os.environ.get(VARIABLE) or None
    if forced is not None and forced not in IMPLEMENTATIONS:
        source = "implementation" if implementation else VARIABLE
        raise ValueError(f"{source} must be one of {', '.join(IMPLEMENTATIONS)}; got {forced!r}")
    if forced == REFERENCE:
        return REFERENCE
    fast = TRITON if q.device.type == "cuda" else TILED
    obstacle = _obstacle(q, k, v, num_heads, focusing_factor)
    if forced is None:
        # The Triton kernels have run in Triton's interpreter only: until a GPU has confirmed them, they
        # are for those who ask.
        return fast if obstacle is None and fast != TRITON else REFERENCE
    if forced != fast:
        obstacle = f"the inputs are on {q.device.type}"
    if obstacle is not None:
        raise ValueError(f"the implementation {forced!r} cannot compute this: {obstacle}")
    return forced


def _obstacle(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, focusing_factor: float
) -> str | None:
    """Why the device's fast implementation cannot be used, or None."""
    if torch.jit.is_tracing():
        return "tracing needs plain operations"
    if focusing_factor != 3:
        return f"focusing_factor is {focusing_factor}, not 3"
    if q.device.type == "cuda":
        from . import gpu

        return gpu.supported(q, k, v, num_heads, focusing_factor)
    if q.device.type not in ("cpu", "meta"):
        return f"there is none for {q.device.type}"
    if not {q.dtype, k.dtype, v.dtype} <= set(_FAST_DTYPES):
        return f"the inputs are {q.dtype}"
    return None


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def log_choice(implementation: str, x: Tensor) -> None:
    """Say in the debug log what computes a call on inputs like x, once for each kind of call."""
    if not torch.compiler.is_compiling():
        _log(implementation, x.device.type, x.dtype, torch.is_grad_enabled())


@cache
def _log(implementation: str, device: str, dtype: torch.dtype, grad: bool) -> None:
    mode = "training" if grad else "inference"
    _logger.debug("focused linear attention on %s, %s, %s: %s", device, dtype, mode, implementation)
