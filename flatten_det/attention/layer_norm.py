"""LayerNorm, with the residual sum before it and the cast after it, in one kernel on CUDA.

Torch's kernel reaches a tenth of the bandwidth at the 64 to 128 channels of the first stages, and sum and
casts read and write everything once more. Elsewhere, and where our kernel cannot be used, the same is
computed by torch's operations. Under ``torch.compile`` as well: Inductor fuses them by itself.
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import gpu
from .eager import PLAIN_TENSORS, has_hooks_or_own_forward, is_plain, is_plain_eager

# By hand, not by torch.library.custom_op, whose wrappers in Python take several times as long per call.
_library = torch.library.Library("flatten_det", "FRAGMENT")
_library.define(
    "add_layer_norm(Tensor x, Tensor? branch, Tensor? keep, Tensor weight, Tensor bias, float eps, "
    "ScalarType dtype) -> Tensor[]"
)
_library.define(
    "add_layer_norm_backward(Tensor d_n, Tensor? d_y, Tensor y, Tensor statistics, Tensor? keep, "
    "Tensor weight, ScalarType x_dtype, ScalarType? branch_dtype) -> Tensor[]"
)


def layer_norm(x: Tensor, norm: nn.Module, for_product: bool = False) -> Tensor:
    """``norm(x)`` of ``x (B, ..., C)``.

    ``for_product``: nothing but matrix products reads the result; under autocast it may come in their dtype.
    """
    if not _kernel_serves(x, None, norm):
        return norm(x)
    return _add_layer_norm(x, None, None, norm, for_product)[1]


def add_layer_norm(
    x: Tensor, branch: Tensor | None, norm: nn.Module, drop_path: nn.Module | None = None
) -> tuple[Tensor, Tensor]:
    """``y = x + drop_path(branch)`` and ``norm(y)``, for matrix products as in :func:`layer_norm`.

    Args:
        x: ``(B, ..., C)``, the residual.
        branch: the same shape; None: y is x, which goes on from here so that its gradients are summed up
            in the kernel.
        drop_path: stochastic depth, timm's ``DropPath`` or an identity.
    """
    if _kernel_serves(x, branch, norm):
        keep = None
        if branch is not None and drop_path is not None:
            branch, keep = _drop_factors(branch, drop_path)
        return _add_layer_norm(x, branch, keep, norm, for_product=True)
    if branch is not None:
        x = x + (branch if drop_path is None else drop_path(branch))
    return x, norm(x)


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast, if it is on, makes of the floating-point x before a product."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _kernel_serves(x: Tensor, branch: Tensor | None, norm: nn.Module) -> bool:
    """Whether the kernel computes a call: multiples of 8 channels up to 1024 on CUDA, a plain LayerNorm."""
    # A compiler fuses plain operations by itself, a trace needs them.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if not _device_serves(x.device) or not is_plain(norm, nn.LayerNorm):
        return False
    weight, bias = norm.weight, norm.bias  # Looked up once: a module takes its time to answer.
    C = x.shape[-1]
    if weight is None or bias is None or weight.shape != (C,):
        return False
    if C % 8 or C > 1024 or x.numel() == 0:
        return False
    dtype, device, tensors = x.dtype, x.device, (x, weight, bias)
    if branch is not None:
        if branch.shape != x.shape:
            return False
        dtype, tensors = torch.promote_types(dtype, branch.dtype), (*tensors, branch)
    for tensor in tensors:
        if tensor.dtype not in gpu.DTYPES or tensor.device != device:
            return False
        if type(tensor) not in PLAIN_TENSORS:
            return False
    return weight.dtype == bias.dtype == dtype or torch.is_autocast_enabled(device.type)


@cache
def _device_serves(device: torch.device) -> bool:
    return device.type == "cuda" and gpu.machine_reason(device) is None


def _drop_factors(branch: Tensor, drop_path: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The branch, and factors ``(B,)`` that stochastic depth still has to multiply it with."""
    # Of timm alone is known what it does, but only torch is needed here.
    is_timms = type(drop_path).__module__.startswith("timm.")
    is_known = is_timms and not has_hooks_or_own_forward(drop_path)
    probability = drop_path.drop_prob if is_known else None
    if probability is None:
        return drop_path(branch), None
    if not (probability and drop_path.training):
        return branch, None
    keep_probability = 1 - probability
    keep = branch.new_empty(branch.shape[0], dtype=torch.float32).bernoulli_(keep_probability)
    if keep_probability > 0 and drop_path.scale_by_keep:
        keep.div_(keep_probability)
    return branch, keep


def _add_layer_norm(
    x: Tensor, branch: Tensor | None, keep: Tensor | None, norm: nn.LayerNorm, for_product: bool
) -> tuple[Tensor, Tensor]:
    """y and n by the kernel; n in the dtype that torch would give it, or the product's."""
    dtype = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type) if for_product else torch.float32
    arguments = (x, branch, keep, norm.weight, norm.bias, norm.eps, dtype)
    if torch.is_grad_enabled():
        return _AddLayerNorm.apply(*arguments)
    n, _, *sums = _forward(*arguments)
    return sums[0] if sums else x, n


class _AddLayerNorm(torch.autograd.Function):
    """y and n with gradients. Kept for the backward pass are y, two numbers a row and the factors."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        n, statistics, *sums = _forward(*arguments)
        x, branch, keep, weight, bias, _, dtype = arguments
        y = sums[0] if sums else x
        ctx.save_for_backward(y, statistics, keep, weight)
        ctx.dtypes = (x.dtype, None if branch is None else branch.dtype, bias.dtype, dtype)
        ctx.set_materialize_grads(False)
        return y, n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, d_n: Tensor | None) -> tuple[Tensor | None, ...]:
        y, statistics, keep, weight = ctx.saved_tensors
        x_dtype, branch_dtype, bias_dtype, dtype = ctx.dtypes
        if d_n is None:
            d_n = torch.zeros_like(y, dtype=dtype)
        d_parameters, d_x, *apart = torch.ops.flatten_det.add_layer_norm_backward.default(
            d_n, d_y, y, statistics, keep, weight, x_dtype, branch_dtype
        )
        d_branch = apart[0] if apart else d_x
        d_weight = d_bias = None
        if any(ctx.needs_input_grad[3:5]):
            d_weight, d_bias = d_parameters.sum(1)
            d_weight, d_bias = d_weight.to(weight.dtype), d_bias.to(bias_dtype)
        return d_x, None if branch_dtype is None else d_branch, None, d_weight, d_bias, None, None


@cache
def _launcher() -> ModuleType:
    return import_module(".gpu.norm", __package__)  # It imports Triton.


def _forward(x: Tensor, *arguments: Any) -> list[Tensor]:
    # The operator, which costs 5 us more, is for fake tensors and for modes that want to see calls.
    if type(x) is Tensor and is_plain_eager():
        return _launcher().forward(x, *arguments)
    return torch.ops.flatten_det.add_layer_norm.default(x, *arguments)


# On the CPU for Triton's interpreter.
for _device in ("CPU", "CUDA"):
    _library.impl("add_layer_norm", lambda *a: _launcher().forward(*a), _device)
    _library.impl("add_layer_norm_backward", lambda *a: _launcher().backward(*a), _device)


@torch.library.register_fake("flatten_det::add_layer_norm", lib=_library)
def _(x, branch, keep, weight, bias, eps, dtype):
    statistics = x.new_empty(x.shape[:-1].numel(), 2, dtype=torch.float32)
    found = [x.new_empty(x.shape, dtype=dtype), statistics]
    if branch is not None:
        found.append(x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype)))
    return found


@torch.library.register_fake("flatten_det::add_layer_norm_backward", lib=_library)
def _(d_n, d_y, y, statistics, keep, weight, x_dtype, branch_dtype):
    found = [
        y.new_empty(2, 1, y.shape[-1], dtype=torch.float32),
        y.new_empty(y.shape, dtype=x_dtype),
    ]
    if branch_dtype is not None and (keep is not None or branch_dtype != x_dtype):
        found.append(y.new_empty(y.shape, dtype=branch_dtype))
    return found
