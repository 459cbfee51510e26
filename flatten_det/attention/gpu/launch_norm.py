"""Launching the kernels of :mod:`.kernels_norm`."""

from functools import cache

import torch
from torch import Tensor

from . import kernels_norm, launch
from .call import ceil_div
from .plan import next_power_of_two
from .scratch import empty

MOST_CHANNELS = 1024
_WARPS = 4
# Elements of a tile for each thread, by what it keeps of each in registers.
_FORWARD_ELEMENTS, _BACKWARD_ELEMENTS = 32, 16
# Threads of a multiprocessor times what each of them keeps: what the registers have room for.
_BACKWARD_RESIDENT = 4 * 32 * _WARPS * _BACKWARD_ELEMENTS


@torch.no_grad()
def forward(
    x: Tensor,
    branch: Tensor | None,
    keep: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> list[Tensor]:
    """``y = x + keep * branch`` and the LayerNorm of y.

    Args:
        x, branch: ``(B, ..., C)`` of the same shape, C a multiple of 8 up to 1024; branch may be None.
        keep: ``(B,)`` float32, or None for ones.
        weight, bias: ``(C,)``.
        eps: of the LayerNorm.
        dtype: of its result.

    Returns:
        The LayerNorm, ``(rows, 2)`` means and inverse standard deviations, and y if there is a branch.
    """
    x = x.contiguous()
    C = x.shape[-1]
    rows = x.numel() // C
    n = empty(*x.shape, like=x, dtype=dtype)
    statistics = empty(rows, 2, like=x)
    y = None
    if branch is not None:
        branch = branch.contiguous()
        y = empty(*x.shape, like=x, dtype=torch.promote_types(x.dtype, branch.dtype))
    blocks = _blocks(
        C, _FORWARD_ELEMENTS, _width(x.dtype, dtype, n.dtype if y is None else y.dtype)
    )
    with torch.cuda.device_of(x):
        launch.run(
            kernels_norm.add_layer_norm,
            (ceil_div(rows, blocks["ROWS"]),),
            x,
            branch,
            keep,
            weight,
            bias,
            y,
            n,
            statistics,
            rows,
            rows // x.shape[0],
            eps,
            **blocks,
            HAS_BRANCH=branch is not None,
            HAS_KEEP=keep is not None,
            num_warps=_WARPS,
        )
    return [n, statistics] if y is None else [n, statistics, y]


@torch.no_grad()
def backward(
    d_n: Tensor,
    d_y: Tensor | None,
    y: Tensor,
    statistics: Tensor,
    keep: Tensor | None,
    weight: Tensor,
    x_dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
) -> list[Tensor]:
    """Gradients of :func:`forward`.

    Args:
        d_n, d_y: gradients of the LayerNorm and of y by itself; d_y may be None.
        y: x where there was no branch.
        x_dtype, branch_dtype: of the gradients; branch_dtype None: there was no branch.

    Returns:
        Parts ``(2, parts, C)`` whose sums are the gradients of weight and bias, the gradient of x, and that
        of the branch unless it equals the former.
    """
    C = y.shape[-1]
    rows = y.numel() // C
    blocks = _blocks(C, _BACKWARD_ELEMENTS, _width(y.dtype, d_n.dtype, x_dtype))
    programs = min(ceil_div(rows, blocks["ROWS"]), _programs(y.device, blocks["ROWS"] * C))
    d_parameters = empty(2, programs, C, like=y)
    d_x = empty(*y.shape, like=y, dtype=x_dtype)
    is_apart = branch_dtype is not None and (keep is not None or branch_dtype != x_dtype)
    d_branch = empty(*y.shape, like=y, dtype=branch_dtype) if is_apart else None
    with torch.cuda.device_of(y):
        launch.run(
            kernels_norm.add_layer_norm_backward,
            (programs,),
            d_n.contiguous(),
            None if d_y is None else d_y.contiguous(),
            y.contiguous(),
            statistics,
            keep,
            weight,
            d_x,
            d_branch,
            d_parameters,
            rows,
            rows // y.shape[0],
            **blocks,
            HAS_D_Y=d_y is not None,
            HAS_D_BRANCH=is_apart,
            HAS_KEEP=keep is not None,
            num_warps=_WARPS,
        )
    return [d_parameters, d_x, d_branch] if is_apart else [d_parameters, d_x]


@cache
def _blocks(C: int, elements: int, width: int) -> dict[str, int]:
    """Compile-time sizes of a tile.

    Args:
        elements: at most for each thread, where the rows are not too long for that.
        width: neighbouring channels that a thread reads at once.
    """
    divisor = C & -C
    chunk = min(divisor, 8 * width)
    while C // chunk * width > elements and chunk < min(divisor, 32 * width):
        chunk *= 2
    if C // chunk > 8:
        chunk = next_power_of_two(C)
    rows = next_power_of_two(elements * 32 * _WARPS // C + 1) // 2
    return dict(C=C, CHUNK=chunk, PARTS=ceil_div(C, chunk), WIDTH=width, ROWS=max(rows, _WARPS))


def _width(*dtypes: torch.dtype) -> int:
    """Elements of the widest dtype in 16 bytes."""
    return 16 // max(dtype.itemsize for dtype in dtypes)


@cache
def _programs(device: torch.device, tile_elements: int) -> int:
    """Programs of the backward pass that run at the same time: one more would wait for all others."""
    if device.type != "cuda":
        return 3
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return count * min(4, max(2, round(_BACKWARD_RESIDENT / tile_elements)))
