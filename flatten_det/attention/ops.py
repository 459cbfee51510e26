"""Focused linear attention as operators of torch: opaque to the compiler, known to autograd and counters.

``torch.compile``, ``torch.export`` and fake tensors see one node with known shapes instead of loops over
tiles or kernel launches. Both devices have the same two operators; ``dispatch`` decides who calls them.

An operator's way through torch's dispatcher and Python takes the host longer than launching its kernels, so
:func:`attention_on_cuda` leaves it out where nobody is looking.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from . import gpu, plain
from .cpu.backward import backward as cpu_backward
from .cpu.forward import Convolution
from .cpu.forward import forward as cpu_forward
from .cpu.layer import forward as cpu_layer
from .folding import FoldedProjections
from .size_cache import tensors_have_values

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? positions, Tensor? scale, Tensor? dwc_weight, "
    "Tensor? dwc_bias, "
)
_FLOOR = "Tensor? floor, "
_SETTINGS = "int num_heads, SymInt height, SymInt width, float eps"
_SIZES = "Tensor? sizes=None"


def _plain_cpu() -> torch.autocast:
    """Autocast would send the products within an operator to half precision."""
    return torch.autocast("cpu", enabled=False)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}{_FLOOR}{_SETTINGS}, {_SIZES}) -> (Tensor, Tensor, Tensor)",
)
def attention(
    q,
    k,
    v,
    positions,
    scale,
    dwc_weight,
    dwc_bias,
    floor,
    num_heads,
    height,
    width,
    eps,
    sizes=None,
):
    """Output ``(B, N, C)``; for backward, the means of f(k)ᵀ v ``(B, h, d, d)`` and of f(k) ``(B, h, d)``.

    On CUDA v is taken from a centre there, which the means have beside that of f(k), ``(B, 2, C)``.

    Arguments as for :func:`~flatten_det.attention.reference.focused_linear_attention`, with p = 3. Fewer
    keys than queries need ``dwc_weight=None``. With a floor there is no backward pass. ``sizes``, on CUDA
    alone, are those of :func:`flatten_det.attention.gpu.launch.forward`.
    """
    _check_no_padding(sizes)
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    with _plain_cpu():
        return cpu_forward(*inputs, num_heads, (height, width), eps, floor)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_INPUTS}Tensor kv, Tensor means, {_SETTINGS}, bool[] needs, {_SIZES}) "
    "-> Tensor[]",
)
def attention_backward(
    grad,
    q,
    k,
    v,
    positions,
    scale,
    dwc_weight,
    dwc_bias,
    kv,
    means,
    num_heads,
    height,
    width,
    eps,
    needs,
    sizes=None,
):
    """Gradients of those of the seven tensor inputs that need one, in their order."""
    _check_no_padding(sizes)
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    with _plain_cpu():
        gradients = cpu_backward(grad, *inputs, kv, means, num_heads, (height, width), eps, needs)
    return [gradient for gradient, need in zip(gradients, needs, strict=True) if need]


def _check_no_padding(sizes: Tensor | None) -> None:
    if sizes is not None:
        raise NotImplementedError(
            "padding within the operator is for CUDA; leave it out on the CPU"
        )


@attention.register_kernel("cuda")
def _attention_cuda(
    q,
    k,
    v,
    positions,
    scale,
    dwc_weight,
    dwc_bias,
    floor,
    num_heads,
    height,
    width,
    eps,
    sizes=None,
):
    if floor is not None:
        raise NotImplementedError("the Triton kernels take scale and eps themselves, no floor")
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    return _forward_by_kernels(*inputs, num_heads, (height, width), eps, sizes)


@attention_backward.register_kernel("cuda")
def _attention_backward_cuda(
    grad,
    q,
    k,
    v,
    positions,
    scale,
    dwc_weight,
    dwc_bias,
    kv,
    means,
    num_heads,
    height,
    width,
    eps,
    needs,
    sizes=None,
):
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    gradients = _backward_by_kernels(
        grad, inputs, kv, means, num_heads, (height, width), eps, sizes, tuple(needs)
    )
    return [gradient for gradient, need in zip(gradients, needs, strict=True) if need]


def _forward_by_kernels(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """``gpu.forward``, or the plain operations if Triton cannot build it; the means are unwritten then."""
    try:
        if not gpu.failure():
            return gpu.forward(*inputs[:-1], sizes=inputs[-1])
    except Exception as error:
        gpu.give_up(error)
    *tensors, num_heads, hw_shape, eps, sizes = inputs
    q = tensors[0]
    head_dim = q.shape[-1] // num_heads
    out = plain.focused_linear_attention(
        **_named(tensors), num_heads=num_heads, hw_shape=hw_shape, eps=eps, sizes=sizes
    )
    kv = q.new_empty(len(q), num_heads, head_dim, head_dim, dtype=torch.float32)
    return out, kv, q.new_empty(len(q), 2, q.shape[-1], dtype=torch.float32)


def _backward_by_kernels(
    grad: Tensor,
    inputs: tuple[Tensor | None, ...],
    kv: Tensor,
    means: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
    sizes: Tensor | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """``gpu.backward``, or that of the plain operations if Triton cannot build it."""
    try:
        if not gpu.failure():
            return gpu.backward(
                grad, *inputs, kv, means, num_heads, hw_shape, eps, needs, sizes=sizes
            )
    except Exception as error:
        gpu.give_up(error)
    leaves = [
        x.detach().requires_grad_() if need else x for x, need in zip(inputs, needs, strict=True)
    ]
    with torch.enable_grad():
        out = plain.focused_linear_attention(
            **_named(leaves), num_heads=num_heads, hw_shape=hw_shape, eps=eps, sizes=sizes
        )
    wanted = [x for x, need in zip(leaves, needs, strict=True) if need]
    found = iter(torch.autograd.grad(out, wanted, grad) if wanted else ())
    return tuple(next(found) if need else None for need in needs)


def _named(tensors: Any) -> dict[str, Tensor | None]:
    names = ("q", "k", "v", "positions", "scale", "dwc_weight", "dwc_bias")
    return dict(zip(names, tensors, strict=True))


class _Kernels(torch.autograd.Function):
    """The kernels under autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out, kv, means = _forward_by_kernels(*inputs)
        ctx.save_for_backward(*inputs[:7], kv, means)
        ctx.settings = inputs[7:]  # The sizes among them, which nobody changes.
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, kv, means = ctx.saved_tensors
        needs = ctx.needs_input_grad[:7]
        gradients = _backward_by_kernels(grad, tuple(tensors), kv, means, *ctx.settings, needs)
        return *gradients, None, None, None, None


def attention_on_cuda(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
    num_heads: int,
    hw_shape: tuple[int, int],
    eps: float,
    sizes: Tensor | None = None,
) -> Tensor:
    """The output of :func:`attention` on CUDA, by its operator only where somebody may look at operators."""
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    if not _is_seen_by_nobody(q):
        return attention(*inputs, None, num_heads, *hw_shape, eps, sizes)[0]
    if torch.is_grad_enabled():
        return _Kernels.apply(*inputs, num_heads, hw_shape, eps, sizes)
    return _forward_by_kernels(*inputs, num_heads, hw_shape, eps, sizes)[0]


def _is_seen_by_nobody(x: Tensor) -> bool:
    """Whether x is a plain tensor: no compiler's, trace's, mode's, subclass's or transformation's."""
    if type(x) is not Tensor or not tensors_have_values():
        return False
    return not torch._C._are_functorch_transforms_active()


@attention.register_fake
def _(q, k, v, positions, scale, dwc_weight, dwc_bias, floor, num_heads, *settings):
    B, N, C = q.shape
    d = C // num_heads
    return (
        v.new_empty(B, N, C),
        v.new_empty(B, num_heads, d, d, dtype=torch.float32),
        v.new_empty((B, 2, C) if q.is_cuda else (B, num_heads, d), dtype=torch.float32),
    )


@attention_backward.register_fake
def _(
    grad, q, k, v, positions, scale, dwc_weight, dwc_bias, kv, means, num_heads, height, width, eps,
    needs, sizes=None,
):  # fmt: skip
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    return [x.new_empty(x.shape) for x, need in zip(inputs, needs, strict=True) if need]


def _setup_context(ctx, inputs, output):
    *tensors, floor, num_heads, height, width, eps, sizes = inputs
    _, kv, means = output
    ctx.save_for_backward(*tensors, kv, means, sizes)
    ctx.settings = (num_heads, height, width, eps)
    ctx.is_folded = floor is not None


def _backward(ctx, grad, *_):
    # Gradients of the two means do not occur: nothing but this reads them.
    if ctx.is_folded:
        raise NotImplementedError("folded projections have no backward pass: unfuse the layer")
    *tensors, kv, means, sizes = ctx.saved_tensors
    needs = [need and x is not None for need, x in zip(ctx.needs_input_grad, tensors, strict=False)]
    found = iter(
        attention_backward(grad, *tensors, kv, means, *ctx.settings, needs, sizes)
        if any(needs)
        else ()
    )
    return (*(next(found) if need else None for need in needs), *[None] * 6)


attention.register_autograd(_backward, setup_context=_setup_context)


def _core_flops(q: torch.Size, k: torch.Size, num_heads: int) -> int:
    """Of f(k)ᵀ v, of f(q) times it, and of f(q) times the mean of f(k)."""
    B, N, C = q
    return 2 * B * C * (C // num_heads) * (N + k[1]) + 2 * B * N * C


def _convolution_flops(v: torch.Size, *weights: torch.Size | None) -> int:
    """Of depthwise convolutions of V; None for one that is not there."""
    B, N, C = v
    return sum(2 * B * N * C * weight[-1] ** 2 for weight in weights if weight is not None)


@register_flop_formula(torch.ops.flatten_det.focused_linear_attention)
def _attention_flops(
    q, k, v, positions, scale, dwc_weight, dwc_bias, floor, num_heads, *settings, **_
) -> int:
    return _core_flops(q, k, num_heads) + _convolution_flops(q, dwc_weight)


@register_flop_formula(torch.ops.flatten_det.focused_linear_attention_backward)
def _attention_backward_flops(
    grad, q, k, v, positions, scale, dwc_weight, dwc_bias, kv, means, num_heads, *settings, **_
) -> int:
    # Each product has two gradients; the products of the query side are computed again.
    return 3 * _core_flops(q, k, num_heads) + 2 * _convolution_flops(q, dwc_weight)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention_layer",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor positions, Tensor position_scale, Tensor floor, "
    "int grid_height, int grid_width, "
    "Tensor? dwc_weight, Tensor? dwc_bias, Tensor? lepe_weight, Tensor? lepe_bias, "
    "Tensor proj_weight, Tensor proj_bias, int num_heads, SymInt height, "
    "SymInt width, float eps) -> Tensor",
)
def layer(
    x,
    weight,
    bias,
    positions,
    position_scale,
    floor,
    grid_height,
    grid_width,
    dwc_weight,
    dwc_bias,
    lepe_weight,
    lepe_bias,
    proj_weight,
    proj_bias,
    num_heads,
    height,
    width,
    eps,
):
    """The whole layer on the CPU, without autograd, ``(B, N, C)`` to ``(B, N, C)`` in float32.

    Args:
        x: ``(B, N, C)``.
        weight, bias, positions, position_scale, floor: see
            :class:`~flatten_det.attention.folding.FoldedProjections`.
        grid_height, grid_width: of the positions.
        dwc_weight, dwc_bias: depthwise convolution of V, the same for all heads, or None.
        lepe_weight, lepe_bias: one with a kernel for every channel, or None.
        proj_weight, proj_bias: the output projection.
    """
    pairs = ((dwc_weight, dwc_bias, num_heads), (lepe_weight, lepe_bias, 1))
    with _plain_cpu():
        return cpu_layer(
            x,
            FoldedProjections(weight, bias, positions, position_scale, floor),
            (grid_height, grid_width),
            [Convolution(*pair) for pair in pairs if pair[0] is not None],
            proj_weight,
            proj_bias,
            num_heads,
            (height, width),
            eps,
        )


@layer.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


@register_flop_formula(torch.ops.flatten_det.focused_linear_attention_layer)
def _layer_flops(x, weight, bias, positions, position_scale, floor, *settings, **_) -> int:
    B, N, C = x
    _, _, dwc_weight, _, lepe_weight, _, _, _, num_heads, *_ = settings
    projections = 4 * 2 * B * N * C * C
    convolutions = _convolution_flops(x, dwc_weight, lepe_weight)
    return projections + _core_flops(x, x, num_heads) + convolutions
