"""Which implementation computes focused linear attention."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import gpu, ops, plain, reference
from .eager import without_autocast
from .reference import Inputs

VARIABLE = "FLATTEN_DET_ATTENTION"
REFERENCE, PLAIN, TILED, TRITON = IMPLEMENTATIONS = ("reference", "plain", "tiled", "triton")
# The whole layer by one operator, projections included.
TILED_LAYER = "tiled, the whole layer"
_needs_plain_operations: ContextVar[bool] = ContextVar("flatten_det_plain", default=False)
_logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """What decides which implementations can compute a call; ``dtypes`` are those of q, k and v."""

    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    channels: int
    num_heads: int
    focusing_factor: float
    has_fewer_keys: bool = False
    is_empty: bool = False


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
    """:func:`.reference.focused_linear_attention` by the fastest implementation that serves the inputs.

    Args:
        q, k, v, num_heads, hw_shape, …: see :class:`~flatten_det.attention.reference.Inputs`.
        implementation: ``'reference'`` (the equation), ``'plain'`` (few operations of torch), ``'tiled'``
            (CPU) or ``'triton'`` (CUDA); None: the environment variable ``FLATTEN_DET_ATTENTION``, if the
            inputs are on the device of what it names, or else the fastest: ``'triton'`` on CUDA, ``'tiled'``
            on the CPU, and where these cannot compute it ``'plain'`` and ``'reference'``.

    Returns:
        ``(B, N, C)`` in the dtype of ``v``.

    Raises:
        ValueError: for an unknown implementation, or one that cannot compute this; the message says why.
    """
    inputs = Inputs(
        q, k, v, positions, scale, dwc_weight, dwc_bias,
        num_heads, hw_shape, focusing_factor, eps, floor,
    )  # fmt: skip
    kind = Kind(
        q.device,
        (q.dtype, k.dtype, v.dtype),
        q.shape[-1],
        num_heads,
        focusing_factor,
        has_fewer_keys=k.shape[1] != q.shape[1],
        is_empty=q.numel() == 0,
    )
    return run(choose(kind, implementation=implementation), inputs)


def run(name: str, inputs: Inputs) -> Tensor:
    """:func:`focused_linear_attention` by the implementation that :func:`choose` chose."""
    # The kernels take scale and eps themselves, and nothing but them and plain operations takes padding.
    refused = inputs.floor if name == TRITON else inputs.sizes
    if refused is not None:
        name = PLAIN
    if name == REFERENCE:
        return reference.focused_linear_attention(inputs)
    if name == PLAIN:
        return plain.focused_linear_attention(inputs)
    if name == TRITON:
        return ops.attention_on_cuda(inputs)
    weight, bias = inputs.dwc_weight, inputs.dwc_bias
    if weight is None or inputs.k.shape[1] == inputs.q.shape[1]:
        return ops.attention_in_tiles(inputs)
    # Fewer keys than queries: V is stretched before its convolution, which is no part of the operator.
    out = ops.attention_in_tiles(inputs._replace(dwc_weight=None, dwc_bias=None))
    with without_autocast(out.device):
        bias = None if bias is None else bias.float()
        v = inputs.v.float()
        values = reference.depthwise_values(
            v, weight.float(), bias, inputs.num_heads, inputs.hw_shape
        )
    return (out + values).to(inputs.v.dtype)


def choose(kind: Kind, is_layer: bool = False, implementation: str | None = None) -> str:
    """What computes a call: one of ``IMPLEMENTATIONS``, or, if ``is_layer``, maybe ``TILED_LAYER``.

    The one place that decides it. It says so in the debug log, once for each kind of call, and warns once for
    each reason why a GPU has to do without the kernels. For implementation and errors see
    :func:`focused_linear_attention`.
    """
    variable = None if implementation else os.environ.get(VARIABLE)
    is_compiling = torch.compiler.is_compiling()
    is_tracing = torch.jit.is_tracing() or (is_compiling and _exports_plain_operations())
    modes = (is_layer, is_tracing, implementation or None, variable or None)
    # A compiler traces what follows: sizes are symbols, and decide as such.
    choice = (
        _decide(kind, *modes) if is_compiling else _choose(kind, torch.is_grad_enabled(), *modes)
    )
    has_failed = choice == TRITON and gpu.failure() and not implementation and not variable
    return PLAIN if has_failed else choice


@contextmanager
def plain_operations() -> Iterator[None]:
    """For its time, ``torch.export`` sees the attention as plain operations: its programs run without us.

    ONNX's exporters see them anyway, as no other program has our operators.
    """
    token = _needs_plain_operations.set(True)
    try:
        yield
    finally:
        _needs_plain_operations.reset(token)


def _exports_plain_operations() -> bool:
    """Whether ``torch.export`` is at work, for a reader that has torch's own operations alone."""
    # Of torch 2.7; older ones are not asked for what they cannot export.
    is_exporting = getattr(torch.compiler, "is_exporting", None)
    if is_exporting is None or not is_exporting():
        return False
    return _needs_plain_operations.get() or torch.onnx.is_in_onnx_export()


@cache
def _choose(kind: Kind, is_grad_enabled: bool, *modes) -> str:
    choice = _decide(kind, *modes)
    _log(choice, kind.device.type, kind.dtypes[-1], is_grad_enabled)
    return choice


def _decide(
    kind: Kind, is_layer: bool, is_tracing: bool, implementation: str | None, variable: str | None
) -> str:
    forced = implementation or variable
    if forced is not None and forced not in IMPLEMENTATIONS:
        source = "implementation" if implementation else VARIABLE
        raise ValueError(f"{source} must be one of {', '.join(IMPLEMENTATIONS)}; got {forced!r}")
    fast, obstacle = _fast(kind, is_tracing)
    # The variable is the whole process's, whose tensors may be on several devices, and which may count
    # operations by a trace.
    if variable in (TILED, TRITON) and (variable != fast or is_tracing):
        forced = None
    if forced in (REFERENCE, PLAIN):
        return forced
    if forced is not None and (forced != fast or obstacle is not None):
        reason = f"the inputs are on {kind.device.type}" if forced != fast else obstacle
        raise ValueError(f"the implementation {forced!r} cannot compute this: {reason}")
    if obstacle is None:
        return TILED_LAYER if is_layer and fast == TILED else fast
    if fast == TRITON:
        gpu.warn(obstacle)
    return REFERENCE if fast == TILED else PLAIN


def _fast(kind: Kind, is_tracing: bool) -> tuple[str | None, str | None]:
    """The fast implementation of the device, and why it cannot be used, each of them or None."""
    device, dtypes, channels, num_heads, focusing_factor, has_fewer_keys, is_empty = kind
    fast = {"cpu": TILED, "meta": TILED, "cuda": TRITON}.get(device.type)
    if fast is None:
        return None, f"there is none for {device.type}"
    if is_tracing:
        return fast, "tracing needs plain operations"
    if focusing_factor != 3:
        return fast, f"focusing_factor is {focusing_factor}, not 3"
    if fast == TRITON:
        return fast, gpu.supported(device, dtypes, channels, num_heads, has_fewer_keys, is_empty)
    if not set(dtypes) <= set(gpu.DTYPES):
        return fast, f"the inputs are {dtypes[0]}"
    return fast, None


@cache
def _log(implementation: str, device: str, dtype: torch.dtype, grad: bool) -> None:
    mode = "training" if grad else "inference"
    _logger.debug("focused linear attention on %s, %s, %s: %s", device, dtype, mode, implementation)
