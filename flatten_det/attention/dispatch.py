"""Which implementation computes focused linear attention."""

import logging
import os
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import gpu, ops, plain, reference
from .gpu.support import DTYPES

VARIABLE = "FLATTEN_DET_ATTENTION"
REFERENCE, PLAIN, TILED, TRITON = IMPLEMENTATIONS = ("reference", "plain", "tiled", "triton")
# The whole layer by one operator, projections included.
TILED_LAYER = "tiled, the whole layer"
_logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """What computes a call.

    Attributes:
        implementation: one of ``IMPLEMENTATIONS``, or ``TILED_LAYER``.
        obstacle: why it is not the device's fast one, or None.
    """

    implementation: str
    obstacle: str | None = None


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
    """Focused linear attention by the fastest implementation that serves the inputs.

    Arguments and result are those of
    :func:`~flatten_det.attention.reference.focused_linear_attention`, which says what is computed.

    Args:
        implementation: ``'reference'`` (the equation), ``'plain'`` (few operations of torch), ``'tiled'``
            (CPU) or ``'triton'`` (CUDA); None: the environment variable ``FLATTEN_DET_ATTENTION``, if the
            inputs are on the device of what it names, or else the fastest: ``'triton'`` on CUDA, ``'tiled'``
            on the CPU, and where these cannot compute it ``'plain'`` and ``'reference'``.

    Raises:
        ValueError: for an unknown implementation, or one that cannot compute this; the message says why.
    """
    choice = choose(
        q.device,
        (q.dtype, k.dtype, v.dtype),
        0 if torch.jit.is_tracing() else int(q.shape[-1]),  # A traced size is a tensor.
        num_heads,
        focusing_factor,
        has_fewer_keys=k.shape[1] != q.shape[1],
        is_empty=q.numel() == 0,
        implementation=implementation,
    )
    return run(
        choice,
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


def run(
    choice: Choice,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_heads: int,
    hw_shape: tuple[int, int],
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
    focusing_factor: float,
    eps: float,
    floor: Tensor | None,
    sizes: Tensor | None = None,
) -> Tensor:
    """:func:`focused_linear_attention` by what :func:`choose` chose for these inputs.

    With ``sizes (B, 2)``, height and width of each map without its padding, int32, the result is that of the
    maps alone, and zero in the padding: by the kernels or, whatever else was chosen, by plain operations.
    """
    name = choice.implementation
    if name == TRITON and floor is not None:
        name = PLAIN  # The kernels take scale and eps themselves.
    if name != TRITON and sizes is not None:
        name = PLAIN
    if name in (REFERENCE, PLAIN):
        function = reference.focused_linear_attention
        if name == PLAIN:
            function = partial(plain.focused_linear_attention, sizes=sizes)
        return function(
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
    if name == TRITON:
        inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
        return ops.attention_on_cuda(*inputs, num_heads, hw_shape, eps, sizes)
    # Fewer keys than queries: V is stretched before its convolution, which is no part of the operator.
    is_reduced = k.shape[1] != q.shape[1]
    weight, bias = (None, None) if is_reduced else (dwc_weight, dwc_bias)
    out, _, _ = ops.attention(
        q, k, v, positions, scale, weight, bias, floor, num_heads, *hw_shape, eps
    )
    if is_reduced and dwc_weight is not None:
        with reference.without_autocast(q.device):
            values = reference.depthwise_values(
                v.float(), dwc_weight.float(), _float(dwc_bias), num_heads, hw_shape
            )
        out = (out + values).to(v.dtype)
    return out


def choose(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    channels: int,
    num_heads: int,
    focusing_factor: float,
    *,
    has_fewer_keys: bool = False,
    is_empty: bool = False,
    is_layer: bool = False,
    implementation: str | None = None,
) -> Choice:
    """What computes a call; the one place that decides it.

    It says so in the debug log, once for each kind of call, and warns once for each reason why a GPU has to
    do without the kernels.

    Args:
        device: of q, k and v.
        dtypes: of q, k and v.
        channels: C of q.
        num_heads: h.
        focusing_factor: p.
        has_fewer_keys: than queries.
        is_empty: there are no tokens.
        is_layer: a whole layer could be computed in tiles.
        implementation: see :func:`focused_linear_attention`, also for the errors.
    """
    variable = None if implementation else os.environ.get(VARIABLE)
    modes = (is_layer, torch.jit.is_tracing(), implementation or None, variable or None)
    call = (device, dtypes, channels, num_heads, focusing_factor, has_fewer_keys, is_empty)
    if torch.compiler.is_compiling():
        # It traces what follows: sizes are symbols, and decide as such.
        choice = _decide(*modes, *call)
    else:
        choice = _choose(torch.is_grad_enabled(), *modes, *call)
    if choice.implementation == TRITON and gpu.failure() and not implementation and not variable:
        return Choice(PLAIN, gpu.failure())
    return choice


@cache
def _choose(is_grad_enabled: bool, *arguments) -> Choice:
    choice = _decide(*arguments)
    *_, device, dtypes, _, _, _, _, _ = arguments
    _log(choice.implementation, device.type, dtypes[-1], is_grad_enabled)
    return choice


def _decide(
    is_layer: bool,
    is_tracing: bool,
    implementation: str | None,
    variable: str | None,
    device: torch.device,
    *call,
) -> Choice:
    forced = implementation or variable
    if forced is not None and forced not in IMPLEMENTATIONS:
        source = "implementation" if implementation else VARIABLE
        raise ValueError(f"{source} must be one of {', '.join(IMPLEMENTATIONS)}; got {forced!r}")
    fast, obstacle = _fast(is_tracing, device, *call)
    # The variable is the whole process's, whose tensors may be on several devices, and which may count
    # operations by a trace.
    if variable in (TILED, TRITON) and (variable != fast or is_tracing):
        forced = None
    if forced in (REFERENCE, PLAIN):
        return Choice(forced, "it was asked for")
    if forced is not None and (forced != fast or obstacle is not None):
        reason = f"the inputs are on {device.type}" if forced != fast else obstacle
        raise ValueError(f"the implementation {forced!r} cannot compute this: {reason}")
    if obstacle is None:
        return Choice(TILED_LAYER if is_layer and fast == TILED else fast)
    if fast == TRITON:
        gpu.warn(obstacle)
    return Choice(REFERENCE if fast == TILED else PLAIN, obstacle)


def _fast(
    is_tracing: bool,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    channels: int,
    num_heads: int,
    focusing_factor: float,
    has_fewer_keys: bool,
    is_empty: bool,
) -> tuple[str | None, str | None]:
    """The fast implementation of the device, and why it cannot be used, each of them or None."""
    fast = {"cpu": TILED, "meta": TILED, "cuda": TRITON}.get(device.type)
    if fast is None:
        return None, f"there is none for {device.type}"
    if is_tracing:
        return fast, "tracing needs plain operations"
    if focusing_factor != 3:
        return fast, f"focusing_factor is {focusing_factor}, not 3"
    if fast == TRITON:
        return fast, gpu.supported(device, dtypes, channels, num_heads, has_fewer_keys, is_empty)
    if not set(dtypes) <= set(DTYPES):
        return fast, f"the inputs are {dtypes[0]}"
    return fast, None


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


@cache
def _log(implementation: str, device: str, dtype: torch.dtype, grad: bool) -> None:
    mode = "training" if grad else "inference"
    _logger.debug("focused linear attention on %s, %s, %s: %s", device, dtype, mode, implementation)
