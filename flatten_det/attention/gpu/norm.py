"""Sum of residual and branch, LayerNorm and cast in one kernel, and its gradients in another.

A row stays in registers as a whole, cut into PARTS parts of CHUNK channels. CHUNK divides C where that makes
few parts, so that 96, 320 or 768 channels leave no lane idle. Sums over a row are taken over the parts first,
within each thread, then over the few threads that share a part. All arithmetic is float32.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch
from .plan import ceil_div, empty, next_power_of_two
from .tiles import kernel, load_tile, store_tile

_WARPS = 4
# Elements of a tile for each thread, by what it keeps of each in registers.
_FORWARD_ELEMENTS, _BACKWARD_ELEMENTS = 32, 16
# Threads of a multiprocessor times what each of them keeps: what the registers have room for.
_BACKWARD_RESIDENT = 4 * 32 * _WARPS * _BACKWARD_ELEMENTS


@triton.jit
def load_rows(pointer, rows, channels, live, inside):
    """A tile in float32."""
    return load_tile(pointer, rows, channels, live, inside).to(tl.float32)


@triton.jit
def part_of(part: tl.constexpr, C: tl.constexpr, CHUNK: tl.constexpr, WIDTH: tl.constexpr):
    """Channels of a part of the rows, and which of them there are."""
    # Tensors of several dtypes are to lie in the threads alike, in steps that suit the widest: otherwise
    # they would go through shared memory on their way from one to the other.
    channels = part * CHUNK + tl.max_contiguous(tl.arange(0, CHUNK), WIDTH)
    inside = tl.full([CHUNK], True, tl.int1) if C % CHUNK == 0 else channels < C
    return channels, inside


@kernel
def add_layer_norm(
    x, branch, keep, weight, bias, y, n, statistics,
    rows, tokens, eps,
    C: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, HAS_BRANCH: tl.constexpr, HAS_KEEP: tl.constexpr,
):  # fmt: skip
    """``y = x + keep * branch`` and its LayerNorm n for ROWS rows; without a branch y is x, and not written.

    Args:
        x, branch, y, n: ``(rows, C)``.
        keep: a factor for each sample of ``tokens`` rows.
        statistics: ``(rows, 2)``: mean and 1 / standard deviation.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < rows
    offsets = row.to(tl.int64) * C
    if HAS_KEEP:
        factor = tl.load(keep + row // tokens, mask=live, other=0.0)

    # Everything is read before anything is written, or the parts would wait for each other.
    values = ()
    scales = ()
    shifts = ()
    for part in tl.static_range(PARTS):
        channels, inside = part_of(part, C, CHUNK, WIDTH)
        value = load_rows(x, offsets, channels, live, inside)
        if HAS_BRANCH:
            added = load_rows(branch, offsets, channels, live, inside)
            if HAS_KEEP:
                added *= factor[:, None]
            # What is normalised is y as it is stored, as if nothing were fused.
            value = (value + added).to(y.dtype.element_ty).to(tl.float32)
        values = values + (value,)
        scales = scales + (tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32),)
        shifts = shifts + (tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32),)
    total = values[0]
    for part in tl.static_range(1, PARTS):
        total += values[part]
    mean = tl.sum(total, axis=1) * (1 / C)

    # The mean is rounded, and what it is off by is the mean of the differences. Without this, equal channels
    # would differ from zero by more than eps allows for.
    differences = ()
    for part in tl.static_range(PARTS):
        channels, inside = part_of(part, C, CHUNK, WIDTH)
        difference = values[part] - mean[:, None]
        if C % CHUNK != 0:
            difference = tl.where(inside[None, :], difference, 0.0)
        differences = differences + (difference,)
    total = differences[0]
    squares = differences[0] * differences[0]
    for part in tl.static_range(1, PARTS):
        total += differences[part]
        squares += differences[part] * differences[part]
    correction = tl.sum(total, axis=1) * (1 / C)
    variance = tl.sum(squares, axis=1) * (1 / C) - correction * correction
    rstd = tl.rsqrt(tl.where(variance < 0, 0.0, variance) + eps)
    tl.store(statistics + 2 * row.to(tl.int64), mean + correction, mask=live)
    tl.store(statistics + 2 * row.to(tl.int64) + 1, rstd, mask=live)

    shift = correction * rstd
    for part in tl.static_range(PARTS):
        channels, inside = part_of(part, C, CHUNK, WIDTH)
        if HAS_BRANCH:
            store_tile(y, offsets, channels, live, inside, values[part])
        normal = differences[part] * rstd[:, None] - shift[:, None]
        normal = normal * scales[part][None, :] + shifts[part][None, :]
        store_tile(n, offsets, channels, live, inside, normal)


@kernel
def add_layer_norm_backward(
    d_n, d_y, y, statistics, keep, weight, d_x, d_branch, d_parameters,
    rows, tokens,
    C: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, HAS_D_Y: tl.constexpr, HAS_D_BRANCH: tl.constexpr, HAS_KEEP: tl.constexpr,
):  # fmt: skip
    """Gradients of x, of the branch, and this program's share of those of weight and bias.

    Each program takes every so manieth tile of ROWS rows and keeps the sums of its rows apart until the end:
    nothing goes from thread to thread in between but the two sums over a row.

    Args:
        d_n, d_y: gradients of the LayerNorm and of y by itself, ``(rows, C)``.
        d_parameters: ``(2, programs, C)``: sums of this program's rows for weight and bias.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    scales = ()
    d_weights = ()
    d_biases = ()
    for part in tl.static_range(PARTS):
        channels, inside = part_of(part, C, CHUNK, WIDTH)
        scales = scales + (tl.load(weight + channels, mask=inside, other=0.0).to(tl.float32),)
        d_weights = d_weights + (tl.zeros([ROWS, CHUNK], tl.float32),)
        d_biases = d_biases + (tl.zeros([ROWS, CHUNK], tl.float32),)

    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS)
        live = row < rows
        offsets = row.to(tl.int64) * C
        mean = tl.load(statistics + 2 * row.to(tl.int64), mask=live, other=0.0)
        rstd = tl.load(statistics + 2 * row.to(tl.int64) + 1, mask=live, other=0.0)
        if HAS_KEEP:
            factor = tl.load(keep + row // tokens, mask=live, other=0.0)
        normals = ()
        grads = ()
        directs = ()
        for part in tl.static_range(PARTS):
            channels, inside = part_of(part, C, CHUNK, WIDTH)
            normals = normals + (load_rows(y, offsets, channels, live, inside),)
            grads = grads + (load_rows(d_n, offsets, channels, live, inside),)
            if HAS_D_Y:
                directs = directs + (load_rows(d_y, offsets, channels, live, inside),)

        total = tl.zeros([ROWS, CHUNK], tl.float32)
        product = tl.zeros([ROWS, CHUNK], tl.float32)
        found = ()
        grown_weights = ()
        grown_biases = ()
        for part in tl.static_range(PARTS):
            normal = (normals[part] - mean[:, None]) * rstd[:, None]
            weighted = grads[part] * scales[part][None, :]
            total += weighted
            product += weighted * normal
            grown_weights = grown_weights + (d_weights[part] + grads[part] * normal,)
            grown_biases = grown_biases + (d_biases[part] + grads[part],)
            found = found + (normal,)
        d_weights = grown_weights
        d_biases = grown_biases
        total_mean = (tl.sum(total, axis=1) * (1 / C) * rstd)[:, None]
        product_mean = (tl.sum(product, axis=1) * (1 / C) * rstd)[:, None]

        for part in tl.static_range(PARTS):
            channels, inside = part_of(part, C, CHUNK, WIDTH)
            grad = grads[part] * scales[part][None, :] * rstd[:, None]
            grad -= found[part] * product_mean + total_mean
            if HAS_D_Y:
                grad += directs[part]
            store_tile(d_x, offsets, channels, live, inside, grad)
            if HAS_D_BRANCH:
                if HAS_KEEP:
                    grad *= factor[:, None]
                store_tile(d_branch, offsets, channels, live, inside, grad)

    for part in tl.static_range(PARTS):
        channels, inside = part_of(part, C, CHUNK, WIDTH)
        sums = d_parameters + program * C + channels
        tl.store(sums, tl.sum(d_weights[part], axis=0), mask=inside)
        tl.store(sums + programs * C, tl.sum(d_biases[part], axis=0), mask=inside)


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
    """``y = x + keep * branch`` and the LayerNorm of y, in ``dtype``.

    Args:
        x, branch: ``(B, ..., C)``, C a multiple of 8 up to 1024; branch may be None.
        keep: ``(B,)`` float32, or None for ones.

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
    blocks = _blocks(C, _FORWARD_ELEMENTS, _width(x.dtype, dtype, (n if y is None else y).dtype))
    with torch.cuda.device_of(x):
        launch.run(
            add_layer_norm, (ceil_div(rows, blocks["ROWS"]),),
            x, branch, keep, weight, bias, y, n, statistics, rows, rows // x.shape[0], eps,
            **blocks, HAS_BRANCH=branch is not None, HAS_KEEP=keep is not None, num_warps=_WARPS,
        )  # fmt: skip
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
    """Gradients of :func:`forward`, from those of the LayerNorm and of y by itself, which may be None.

    Without a branch, ``branch_dtype`` is None and y is x.

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
            add_layer_norm_backward, (programs,),
            d_n.contiguous(), None if d_y is None else d_y.contiguous(), y.contiguous(), statistics,
            keep, weight, d_x, d_branch, d_parameters, rows, rows // y.shape[0],
            **blocks, HAS_D_Y=d_y is not None, HAS_D_BRANCH=is_apart, HAS_KEEP=keep is not None,
            num_warps=_WARPS,
        )  # fmt: skip
    return [d_parameters, d_x, d_branch] if is_apart else [d_parameters, d_x]


@cache
def _blocks(C: int, elements: int, width: int) -> dict[str, int]:
    """Compile-time sizes of a tile, whose threads read ``width`` channels at once, and have ``elements``."""
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
