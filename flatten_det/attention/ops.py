"""Focused linear attention as operators of torch: opaque to the compiler, known to autograd and counters.

``torch.compile``, ``torch.export`` and fake tensors see one node with known shapes instead of loops over
tiles or kernel launches. Both devices have the same two operators; ``dispatch`` decides who calls them.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from .cpu.backward import backward as cpu_backward
from .cpu.forward import Convolution
from .cpu.forward import forward as cpu_forward
from .cpu.layer import forward as cpu_layer
from .folding import FoldedProjections

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? positions, Tensor? scale, Tensor? dwc_weight, "
    "Tensor? dwc_bias, "
)
_FLOOR = "Tensor? floor, "
_SETTINGS = "int num_heads, SymInt height, SymInt width, float eps"


def _plain_cpu() -> torch.autocast:
    """Autocast would send the products within an operator to half precision."""
    return torch.autocast("cpu", enabled=False)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}{_FLOOR}{_SETTINGS}) -> (Tensor, Tensor, Tensor)",
)
def attention(
    q, k, v, positions, scale, dwc_weight, dwc_bias, floor, num_heads, height, width, eps
):
    """Output ``(B, N, C)``, mean of f(k)ᵀ v ``(B, h, d, d)`` and of f(k) ``(B, h, d)``.

    Arguments as for :func:`~flatten_det.attention.reference.focused_linear_attention`, with p = 3. Fewer
    keys than queries need ``dwc_weight=None``. With a floor there is no backward pass.
    """
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    with _plain_cpu():
        return cpu_forward(*inputs, num_heads, (height, width), eps, floor)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor grad, {_INPUTS}Tensor kv, Tensor k_mean, {_SETTINGS}, bool[] needs) -> Tensor[]",
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
    k_mean,
    num_heads,
    height,
    width,
    eps,
    needs,
):
    """Gradients of those of the seven tensor inputs that need one, in their order."""
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    with _plain_cpu():
        gradients = cpu_backward(grad, *inputs, kv, k_mean, num_heads, (height, width), eps, needs)
    return [gradient for gradient, need in zip(gradients, needs, strict=True) if need]


@attention.register_kernel("cuda")
def _attention_cuda(
    q, k, v, positions, scale, dwc_weight, dwc_bias, floor, num_heads, height, width, eps
):
    from . import gpu

    if floor is not None:
        raise NotImplementedError("the Triton kernels take scale and eps themselves, no floor")
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    out, kv, k_mean = gpu.forward(*inputs, num_heads, (height, width), eps)
    # They may be views of the kernels' scratch memory, which results of an operator must not share.
    return out, kv.clone(), k_mean.clone()


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
    k_mean,
    num_heads,
    height,
    width,
    eps,
    needs,
):
    from . import gpu

    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    gradients = list(
        gpu.backward(grad, *inputs, kv, k_mean, num_heads, (height, width), eps, tuple(needs))
    )
    if needs[3] and gradients[3].data_ptr() == gradients[1].data_ptr():
        gradients[3] = gradients[3].clone()  # Positions of every map: the keys' own gradient.
    return [gradient for gradient, need in zip(gradients, needs, strict=True) if need]


@attention.register_fake
def _(q, k, v, positions, scale, dwc_weight, dwc_bias, floor, num_heads, height, width, eps):
    B, N, C = q.shape
    d = C // num_heads
    return (
        v.new_empty(B, N, C),
        v.new_empty(B, num_heads, d, d, dtype=torch.float32),
        v.new_empty(B, num_heads, d, dtype=torch.float32),
    )


@attention_backward.register_fake
def _(grad, q, k, v, positions, scale, dwc_weight, dwc_bias, kv, k_mean, *settings):
    inputs = (q, k, v, positions, scale, dwc_weight, dwc_bias)
    needs = settings[-1]
    return [x.new_empty(x.shape) for x, need in zip(inputs, needs, strict=True) if need]


def _setup_context(ctx, inputs, output):
    *tensors, floor, num_heads, height, width, eps = inputs
    _, kv, k_mean = output
    ctx.save_for_backward(*tensors, kv, k_mean)
    ctx.settings = (num_heads, height, width, eps)
    ctx.is_folded = floor is not None


def _backward(ctx, grad, *_):
    # Gradients of the two means do not occur: nothing but this reads them.
    if ctx.is_folded:
        raise NotImplementedError("folded projections have no backward pass: unfuse the layer")
    *tensors, kv, k_mean = ctx.saved_tensors
    needs = [need and x is not None for need, x in zip(ctx.needs_input_grad, tensors, strict=False)]
    found = iter(
        attention_backward(grad, *tensors, kv, k_mean, *ctx.settings, needs) if any(needs) else ()
    )
    return (*(next(found) if need else None for need in needs), None, None, None, None, None)


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
    grad, q, k, v, positions, scale, dwc_weight, dwc_bias, kv, k_mean, num_heads, *settings, **_
) -> int:
    # Each product has two gradients; the products of the query side are computed again.
    return 3 * _core_flops(q, k, num_heads) + 2 * _convolution_flops(q, dwc_weight)


@torch.library.custom_op(
    "flatten_det::focused_linear_attention_layer",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor weight, Tensor bias, Tensor positions, Tensor floor, int grid_height, "
    "int grid_width, Tensor? dwc_weight, Tensor? dwc_bias, Tensor? lepe_weight, Tensor? lepe_bias, "
    "Tensor proj_weight, Tensor proj_bias, int num_heads, SymInt height, "
    "SymInt width, float eps) -> Tensor",
)
def layer(
    x,
    weight,
    bias,
    positions,
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
        weight, bias, positions, floor: see :class:`~flatten_det.attention.folding.FoldedProjections`.
        grid_height, grid_width: of the positions.
        dwc_weight, dwc_bias: depthwise convolution of V, the same for all heads, or None.
        lepe_weight, lepe_bias: one with a kernel for every channel, or None.
        proj_weight, proj_bias: the output projection.
    """
    pairs = ((dwc_weight, dwc_bias, num_heads), (lepe_weight, lepe_bias, 1))
    with _plain_cpu():
        return cpu_layer(
            x,
            FoldedProjections(weight, bias, positions, floor),
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
def _layer_flops(x, weight, bias, positions, floor, *settings, **_) -> int:
    B, N, C = x
    _, _, dwc_weight, _, lepe_weight, _, _, _, num_heads, *_ = settings
    projections = 4 * 2 * B * N * C * C
    convolutions = _convolution_flops(x, dwc_weight, lepe_weight)
    return projections + _core_flops(x, x, num_heads) + convolutions
