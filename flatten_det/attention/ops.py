"""Focused linear attention as operators of torch: opaque to the compiler, known to autograd and counters.

``torch.compile``, ``torch.export`` and fake tensors see one node with known shapes instead of loops over
tiles or kernel launches. Both devices have the same two operators; ``dispatch`` decides who calls them.

An operator's way through torch's dispatcher and Python takes the host longer than launching its kernels, so
:func:`attention_on_cuda` leaves it out where nobody is looking.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from . import gpu, plain, tiled, tiles
from .eager import is_plain_eager, without_autocast
from .reference import Inputs

# Schemas are flat: `_unpack` takes `Inputs` apart for a call, `_pack` puts them together again.
_TENSORS = (
    "Tensor q, Tensor k, Tensor v, Tensor? positions, Tensor? scale, Tensor? dwc_weight, "
    "Tensor? dwc_bias"
)
_SETTINGS = "int num_heads, SymInt height, SymInt width, float eps"
_SIZES = "Tensor? sizes=None"
_CPU = torch.device("cpu")


@torch.library.custom_op(
    "flatten_det::focused_linear_attention",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_TENSORS}, Tensor? floor, {_SETTINGS}, {_SIZES}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def attention(*arguments):
    """Output ``(B, N, C)``; for backward, the means of f(k)ᵀ v ``(B, h, d, d)`` and of f(k) ``(B, h, d)``.

    On CUDA v is taken from a centre there, which the means have beside that of f(k), ``(B, 2, C)``; and the
    last one has norms of the rows of q and k, ``(B, 2, N, 2)``, while it is empty on the CPU.

    Arguments are those of :class:`~flatten_det.attention.reference.Inputs`, with p = 3. Fewer keys than
    queries need ``dwc_weight=None``. With a floor, which is for the CPU alone, there is no backward pass;
    ``sizes`` are for CUDA alone.
    """
    inputs = _pack(*arguments)
    if inputs.sizes is not None:
        raise NotImplementedError(
            "padding within the operator is for CUDA; leave it out on the CPU"
        )
    # Autocast would send the products within an operator to half precision.
    with without_autocast(_CPU):
        return *tiled.forward(inputs), inputs.q.new_empty(0, dtype=torch.float32)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_TENSORS}, Tensor kv, Tensor means, Tensor norms, {_SETTINGS}, "
    f"bool[] needs, {_SIZES}) -> Tensor[]",
)
def attention_backward(*arguments):
    """Gradients of those of the seven tensor inputs that need one, in their order."""
    grad, inputs, (kv, means, _), needs = _pack_backward(*arguments)
    with without_autocast(_CPU):
        return _needed(tiled.backward(grad, inputs, kv, means, needs), needs)


def _pack(
    q, k, v, positions, scale, dwc_weight, dwc_bias, floor, num_heads, height, width, eps, sizes=None
) -> Inputs:  # fmt: skip
    """The arguments of :func:`attention`."""
    tensors = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    return Inputs(*tensors, num_heads, (height, width), eps=eps, floor=floor, sizes=sizes)


def _pack_backward(grad, *arguments) -> tuple[Tensor, Inputs, Sequence[Tensor], Sequence[bool]]:
    """The arguments of :func:`attention_backward`."""
    num_heads, height, width, eps, needs, *sizes = arguments[10:]
    inputs = _pack(*arguments[:7], None, num_heads, height, width, eps, *sizes)
    return grad, inputs, arguments[7:10], needs


def _unpack(inputs: Inputs) -> tuple:
    """The arguments of :func:`attention`."""
    settings = (inputs.floor, inputs.num_heads, *inputs.hw_shape, inputs.eps, inputs.sizes)
    return *inputs.tensors, *settings


def _needed(gradients: Iterable[Tensor | None], needs: Iterable[bool]) -> list[Tensor]:
    return [gradient for gradient, need in zip(gradients, needs, strict=True) if need]


def _spread(gradients: Iterable[Tensor], needs: Iterable[bool]) -> list[Tensor | None]:
    """The inverse of :func:`_needed`."""
    found = iter(gradients)
    return [next(found) if need else None for need in needs]


@attention.register_kernel("cuda")
def _attention_cuda(*arguments):
    inputs = _pack(*arguments)
    if inputs.floor is not None:
        raise NotImplementedError("the Triton kernels take scale and eps themselves, no floor")
    return _forward_by_kernels(inputs)


@attention_backward.register_kernel("cuda")
def _attention_backward_cuda(*arguments):
    *packed, needs = _pack_backward(*arguments)
    return _needed(_backward_by_kernels(*packed, tuple(needs)), needs)


def _forward_by_kernels(
    inputs: Inputs, for_backward: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """``gpu.forward``, or the plain operations if Triton cannot build it; all but the output is unwritten."""
    try:
        if not gpu.failure():
            return gpu.forward(inputs, for_backward=for_backward)
    except Exception as error:
        gpu.give_up(error)
    return plain.focused_linear_attention(inputs), *_new_saved(inputs)


def _new_saved(inputs: Inputs) -> Iterable[Tensor]:
    """Unwritten memory for what the kernels keep for backward."""
    (B, N, C), h = inputs.q.shape, inputs.num_heads
    shapes = ((B, h, C // h, C // h), (B, 2, C), (B, 2, N, 2))
    return (inputs.q.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _backward_by_kernels(
    grad: Tensor, inputs: Inputs, saved: Sequence[Tensor], needs: tuple[bool, ...]
) -> Sequence[Tensor | None]:
    """``gpu.backward``, or that of the plain operations if Triton cannot build it."""
    try:
        if not gpu.failure():
            return gpu.backward(grad, inputs, *saved, needs)
    except Exception as error:
        gpu.give_up(error)
    leaves = [
        x.detach().requires_grad_() if need else x
        for x, need in zip(inputs.tensors, needs, strict=True)
    ]
    with torch.enable_grad():
        out = plain.focused_linear_attention(inputs.with_tensors(leaves))
    wanted = _needed(leaves, needs)
    return _spread(torch.autograd.grad(out, wanted, grad) if wanted else (), needs)


class _Kernels(torch.autograd.Function):
    """The kernels under autograd."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        out, *saved = _forward_by_kernels(Inputs(*inputs))
        ctx.save_for_backward(*inputs[:7], *saved)
        ctx.settings = inputs[7:]  # The sizes among them, which nobody changes.
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, saved = ctx.saved_tensors[:7], ctx.saved_tensors[7:]
        inputs, needs = Inputs(*tensors, *ctx.settings), ctx.needs_input_grad[:7]
        return *_backward_by_kernels(grad, inputs, saved, needs), *[None] * len(ctx.settings)


def attention_on_cuda(inputs: Inputs) -> Tensor:
    """The output of :func:`attention` on CUDA, by its operator only where somebody may look at operators."""
    is_plain = type(inputs.q) is Tensor and is_plain_eager()
    if not is_plain or torch._C._are_functorch_transforms_active():
        return attention(*_unpack(inputs))[0]
    if torch.is_grad_enabled():
        return _Kernels.apply(*inputs)
    return _forward_by_kernels(inputs, for_backward=False)[0]


def attention_in_tiles(inputs: Inputs) -> Tensor:
    """The output of :func:`attention` on the CPU."""
    return attention(*_unpack(inputs))[0]


@attention.register_fake
def _(*arguments):
    inputs = _pack(*arguments)
    (B, N, C), h, v = inputs.q.shape, inputs.num_heads, inputs.v
    out = v.new_empty(B, N, C)
    if v.is_cuda:
        return out, *_new_saved(inputs)
    shapes = ((B, h, C // h, C // h), (B, h, C // h), (0,))
    return out, *(v.new_empty(shape, dtype=torch.float32) for shape in shapes)


@attention_backward.register_fake
def _(*arguments):
    _, inputs, _, needs = _pack_backward(*arguments)
    return [x.new_empty(x.shape) for x in _needed(inputs.tensors, needs)]


def _setup_context(ctx, inputs, output):
    inputs = _pack(*inputs)
    ctx.save_for_backward(*inputs.tensors, *output[1:], inputs.sizes)
    ctx.settings = (inputs.num_heads, *inputs.hw_shape, inputs.eps)
    ctx.is_folded = inputs.floor is not None


def _backward(ctx, grad, *_):
    # Gradients of the means and norms do not occur: nothing but this reads them.
    if ctx.is_folded:
        raise NotImplementedError("folded projections have no backward pass: unfuse the layer")
    *saved, sizes = ctx.saved_tensors
    needs = [
        need and x is not None for need, x in zip(ctx.needs_input_grad, saved[:7], strict=False)
    ]
    found = ()
    if any(needs):
        found = attention_backward(grad, *saved, *ctx.settings, needs, sizes)
    return *_spread(found, needs), *[None] * 6


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
def _attention_flops(*arguments, **_) -> int:
    shapes = _pack(*arguments)
    core = _core_flops(shapes.q, shapes.k, shapes.num_heads)
    return core + _convolution_flops(shapes.q, shapes.dwc_weight)


@register_flop_formula(torch.ops.flatten_det.focused_linear_attention_backward)
def _attention_backward_flops(*arguments, **_) -> int:
    _, shapes, *_ = _pack_backward(*arguments)
    core = _core_flops(shapes.q, shapes.k, shapes.num_heads)
    # Each product has two gradients; the products of the query side are computed again.
    return 3 * core + 2 * _convolution_flops(shapes.q, shapes.dwc_weight)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention_layer",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, SymInt height, SymInt width, Tensor weight, Tensor bias, Tensor positions, "
    "Tensor position_scale, Tensor floor, int grid_height, int grid_width, Tensor? dwc_weight, "
    "Tensor? dwc_bias, Tensor? lepe_weight, Tensor? lepe_bias, Tensor proj_weight, Tensor proj_bias, "
    "int num_heads, float eps) -> Tensor",
)
def layer(x, height, width, *parameters):
    """The whole layer on the CPU, without autograd, ``(B, N, C)`` to ``(B, N, C)`` in float32.

    ``parameters`` are those of :class:`~flatten_det.attention.tiles.Layer`.
    """
    with without_autocast(_CPU):
        return tiles.forward(x, tiles.Layer(*parameters), (height, width))


@layer.register_fake
def _(x, *_):
    return x.new_empty(x.shape)


@register_flop_formula(torch.ops.flatten_det.focused_linear_attention_layer)
def _layer_flops(x, height, width, *parameters, **_) -> int:
    B, N, C = x
    shapes = tiles.Layer(*parameters)
    projections = 4 * 2 * B * N * C * C
    convolutions = _convolution_flops(x, shapes.dwc_weight, shapes.lepe_weight)
    return projections + _core_flops(x, x, shapes.num_heads) + convolutions
