"""Sum of residual and branch, LayerNorm and cast in one kernel, and its gradients in another.

A row stays in registers as a whole, cut into PARTS parts of CHUNK channels. CHUNK divides C where that makes
few parts, so that 96, 320 or 768 channels leave no lane idle. Sums over a row are taken over the parts first,
within each thread, and then over the few threads that share a part. All arithmetic is float32.
"""

import triton
import triton.language as tl

from .tiles import load_tile, store_tile


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


@triton.jit(do_not_specialize=["rows", "tokens"])
def add_layer_norm(
    x,
    branch,
    keep,
    weight,
    bias,
    y,
    n,
    statistics,
    rows,
    tokens,
    eps,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
    HAS_KEEP: tl.constexpr,
):
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


@triton.jit(do_not_specialize=["rows", "tokens"])
def add_layer_norm_backward(
    d_n,
    d_y,
    y,
    statistics,
    keep,
    weight,
    d_x,
    d_branch,
    d_parameters,
    rows,
    tokens,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_D_Y: tl.constexpr,
    HAS_D_BRANCH: tl.constexpr,
    HAS_KEEP: tl.constexpr,
):
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
