"""Backward kernels: queries, keys and values, depthwise weights, sums.

Notation as in :mod:`.tiles`; G is the gradient of the output. The length of a row may be treated as a
constant where it is divided out, because the result does not depend on it. ``sizes`` as in
:mod:`.kernels_forward`.
"""

import triton
import triton.language as tl

from .tiles import (
    add_column_sums,
    add_convolution,
    as_columns,
    as_operand,
    centred_values,
    cube,
    focus,
    grow,
    headroom,
    inverse_scales,
    inverse_softplus,
    is_positive,
    kernel,
    load_matrix,
    load_tile,
    multiply,
    multiply_add,
    program_heads,
    region_groups,
    region_tokens,
    row_offsets,
    store_matrix,
    store_tile,
    tile_tokens,
    valid_count,
    valid_size,
)


@triton.jit
def query_head(u, inverse_norm, floor, grad, matrix, factor, mean, centre):
    """One head of a tile of queries.

    With s = c . k_mean and den = s + floor, the head's output is centre s / den + (c kv) / den.

    Args:
        grad: G as an operand.
        matrix, factor: kv^T as an operand, and what its products are to be multiplied with.
        mean: k_mean of the head.
        centre: :func:`~.tiles.as_columns` of the centre.

    Returns:
        c, G kv^T, 1 / den, and d loss / ds and d loss / d floor.
    """
    c = cube(u, inverse_norm)
    back = multiply(grad, matrix) * factor
    total = tl.sum(c * mean[None, :], axis=1)
    reciprocal = 1.0 / (total + floor)
    product = tl.sum(c * back, axis=1)
    columns, centre_factor = centre
    centred = tl.sum(multiply(grad, columns), axis=1) * centre_factor
    # Each on its own: the difference of the two is `centred` / den, which is far larger than one of them
    # where the eps is negligible, and than the other where it rules.
    square = reciprocal * reciprocal
    d_sum = (centred * floor - product) * square
    d_floor = -(centred * total + product) * square
    return c, back, reciprocal, d_sum, d_floor


@triton.jit
def query_parameters(
    means, kv, head, lanes, inside, C: tl.constexpr, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr
):
    """What :func:`query_head` takes of a head of this batch entry: matrix, factor, mean, centre."""
    matrix = load_matrix(kv + head * HEAD_DIM * HEAD_DIM, lanes, inside, HEAD_DIM)
    mean = tl.load(means + head * HEAD_DIM + lanes, mask=inside, other=0.0)
    middle = tl.load(means + C + head * HEAD_DIM + lanes, mask=inside, other=0.0)
    operand, factor = as_operand(matrix, OPERAND)
    return tl.trans(operand), factor, mean, as_columns(middle, OPERAND)


@kernel
def query_norms(
    q, q_batch, q_token, grad, grad_batch, grad_token, scale, means, kv, norms,
    N, sizes, pitch, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """What the heads of a row of queries share, for programs that see one head only.

    ``norms (B, N, 3)`` float32: 1 / n, sum of c^2, d loss / d floor. Grid (tiles, B).
    """
    batch = tl.program_id(1).to(tl.int64)
    count, width = valid_count(sizes, batch, N, HAS_SIZES)
    tokens, live = tile_tokens(tl.program_id(0), count, width, pitch, BLOCK, HAS_SIZES)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    rows = row_offsets(tokens, q_token)
    grad_rows = row_offsets(tokens, grad_token)
    inverses = inverse_scales(scale, 0, lanes, inside, HEAD_DIM, HEADS, HAS_SCALE)
    us, inverse_norm, sixths = focus(
        q + batch * q_batch * 8, rows, q, rows, inverses, norms, rows, 0, lanes, live, inside, eps,
        HEADS, HEAD_DIM, HEADS, False, True,
    )  # fmt: skip
    floor = eps * tl.sqrt(sixths) * inverse_norm
    total = tl.zeros([BLOCK], tl.float32)
    for head in tl.static_range(HEADS):
        matrix, factor, mean, middle = query_parameters(
            means + batch * 2 * C, kv + batch * C * HEAD_DIM, head, lanes, inside,
            C, HEAD_DIM, OPERAND,
        )  # fmt: skip
        gradient = load_tile(
            grad + batch * grad_batch * 8, grad_rows, head * HEAD_DIM + lanes, live, inside
        ).to(OPERAND)
        _, _, _, _, d_floor = query_head(
            us[head], inverse_norm, floor, gradient, matrix, factor, mean, middle
        )
        total += d_floor
    places = (batch * N + tokens) * 3
    tl.store(norms + places, inverse_norm, mask=live)
    tl.store(norms + places + 1, sixths, mask=live)
    tl.store(norms + places + 2, total, mask=live)


@kernel
def backward_queries(
    q, q_batch, q_token, grad, grad_batch, grad_token, scale, norms, means, kv, d_q, d_kv, d_k_mean,
    d_scale,
    N, sizes, pitch, tiles_per_split, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr,
    HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Gradient of q, and one split's part of the gradients of kv, k_mean (both / N) and of the scale.

    With v = centre + (v - centre), the gradient of f(k) is (v - centre) d_kv^T + d_k_mean, neither of
    which is a small difference of large numbers.

    GROUP is all heads, or 1 with ``norms`` of :func:`query_norms`. Grid (B * h / GROUP, splits).
    ``d_q (B, N, C)`` contiguous; ``d_kv (B, splits, h, d, d)``, ``d_k_mean (B, splits, h, d)`` and
    ``d_scale (B, splits, C)`` float32, the last without its factor.
    """
    batch, first_head = program_heads(HEADS, GROUP)
    split = tl.program_id(1)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    q += batch * q_batch * 8
    grad += batch * grad_batch * 8
    d_q += batch * N * C
    if GROUP < HEADS:
        norms += batch * N * 3
    count, width = valid_count(sizes, batch, N, HAS_SIZES)

    inverses = inverse_scales(scale, first_head, lanes, inside, HEAD_DIM, GROUP, HAS_SCALE)
    parameters = ()
    matrices = ()
    sums = ()
    scales = ()
    units = ()
    for g in tl.static_range(GROUP):
        parameters = parameters + (
            query_parameters(
                means + batch * 2 * C, kv + batch * C * HEAD_DIM, first_head + g, lanes, inside,
                C, HEAD_DIM, OPERAND,
            ),
        )  # fmt: skip
        matrices = matrices + (tl.zeros([D, D], tl.float32),)
        sums = sums + (tl.zeros([D, 16], tl.float32),)
        scales = scales + (tl.zeros([D, 16], tl.float32),)
        units = units + (tl.full([], 1e-30, tl.float32),)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(count, BLOCK))
    for tile in range(split * tiles_per_split, last):
        tokens, live = tile_tokens(tile, count, width, pitch, BLOCK, HAS_SIZES)
        rows = row_offsets(tokens, q_token)
        grad_rows = row_offsets(tokens, grad_token)
        us, inverse_norm, sixths = focus(
            q, rows, q, rows, inverses, norms, tokens.to(tl.int64) * 3, first_head, lanes, live,
            inside, eps, HEADS, HEAD_DIM, GROUP, False, True,
        )  # fmt: skip
        floor = eps * tl.sqrt(sixths) * inverse_norm
        # The norms of a row are in the normalisers of all heads.
        d_floor = tl.zeros([BLOCK], tl.float32)
        heads = ()
        for g in tl.static_range(GROUP):
            matrix, factor, mean, middle = parameters[g]
            channels = (first_head + g) * HEAD_DIM + lanes
            gradient = load_tile(grad, grad_rows, channels, live, inside).to(OPERAND)
            c, back, reciprocal, d_sum, part = query_head(
                us[g], inverse_norm, floor, gradient, matrix, factor, mean, middle
            )
            d_floor += part
            heads = heads + ((gradient, c, back, reciprocal, d_sum),)
        if GROUP < HEADS:
            d_floor = tl.load(norms + tokens.to(tl.int64) * 3 + 2, mask=live, other=0.0)

        # d loss / du is 1 / n of d loss / dt. Of floor = eps ||c|| / n, d / dt is 3 t^2 c / ||c||^2 - t.
        d_length = d_floor * floor * inverse_norm
        outer = d_length * (3.0 / sixths)
        new_matrices = ()
        new_sums = ()
        new_scales = ()
        new_units = ()
        for g in tl.static_range(GROUP):
            gradient, c, back, reciprocal, d_sum = heads[g]
            _, _, mean, _ = parameters[g]
            channels = (first_head + g) * HEAD_DIM + lanes
            t = us[g] * inverse_norm[:, None]
            d_c = back * (3.0 * inverse_norm * reciprocal)[:, None]
            d_c += (3.0 * inverse_norm * d_sum)[:, None] * mean[None, :]
            d_u = (d_c + outer[:, None] * c) * (t * t) - d_length[:, None] * t
            d_x = tl.where(is_positive(us[g], inverses[g], eps), d_u * inverses[g][None, :], 0.0)
            store_tile(d_q, tokens.to(tl.int64) * C, channels, live, inside, d_x)
            matrix = matrices[g]
            unit = units[g]
            if OPERAND == tl.float16:
                unit, shrink = grow(unit, tl.where(live, reciprocal, 0.0), OPERAND)
                matrix *= shrink
                reciprocal /= unit
            new_matrices = new_matrices + (
                multiply_add(tl.trans((c * reciprocal[:, None]).to(OPERAND)), gradient, matrix),
            )
            new_sums = new_sums + (add_column_sums(sums[g], c * d_sum[:, None], OPERAND, True),)
            new_scales = new_scales + (add_column_sums(scales[g], d_u * us[g], OPERAND, False),)
            new_units = new_units + (unit,)
        matrices = new_matrices
        sums = new_sums
        scales = new_scales
        units = new_units

    splits = tl.num_programs(1)
    for g in tl.static_range(GROUP):
        head = (batch * splits + split) * HEADS + first_head + g
        # f(k) enters kv and k_mean divided by N.
        factor = 1.0 / count
        if OPERAND == tl.float16:
            factor *= units[g]
        matrix = matrices[g] * factor
        store_matrix(d_kv + head * HEAD_DIM * HEAD_DIM, lanes, inside, matrix, HEAD_DIM)
        tl.store(d_k_mean + head * HEAD_DIM + lanes, tl.sum(sums[g], axis=1) / count, mask=inside)
        tl.store(d_scale + head * HEAD_DIM + lanes, tl.sum(scales[g], axis=1), mask=inside)


@triton.jit
def key_head(u, inverse_norm, values, matrix, factor, vector):
    """One head of a tile of keys.

    Args:
        values: of :func:`~.tiles.centred_values`.
        matrix, factor: d_kv^T as an operand, and what its products are to be multiplied with.
        vector: d_k_mean of the head.

    Returns:
        c, the gradient of f(k), and its dot product with c per row.
    """
    c = cube(u, inverse_norm)
    d_focused = multiply(values, matrix) * factor + vector[None, :]
    return c, d_focused, tl.sum(d_focused * c, axis=1)


@triton.jit
def key_parameters(
    means, d_kv, d_k_mean, head, lanes, inside,
    C: tl.constexpr, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Of a head of this batch entry: d_kv as an operand, its factor, d_k_mean, centre."""
    matrix = load_matrix(d_kv + head * HEAD_DIM * HEAD_DIM, lanes, inside, HEAD_DIM)
    operand, factor = as_operand(matrix, OPERAND)
    vector = tl.load(d_k_mean + head * HEAD_DIM + lanes, mask=inside, other=0.0)
    middle = tl.load(means + C + head * HEAD_DIM + lanes, mask=inside, other=0.0)
    return operand, factor, vector, middle


@kernel
def key_norms(
    k, k_batch, k_token, v, v_batch, v_token, positions, positions_batch, positions_token, scale,
    means, d_kv, d_k_mean, norms,
    N, sizes, pitch, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_SCALE: tl.constexpr,
    OPERAND: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """What the heads of a row of keys share, for programs that see one head only.

    ``norms (B, N, 3)`` float32: 1 / n, sum of c^2, dot product of c and the gradient of f(k).
    Grid (tiles, B).
    """
    batch = tl.program_id(1).to(tl.int64)
    count, width = valid_count(sizes, batch, N, HAS_SIZES)
    tokens, live = tile_tokens(tl.program_id(0), count, width, pitch, BLOCK, HAS_SIZES)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    rows = row_offsets(tokens, k_token)
    v_rows = row_offsets(tokens, v_token)
    inverses = inverse_scales(scale, 0, lanes, inside, HEAD_DIM, HEADS, HAS_SCALE)
    us, inverse_norm, sixths = focus(
        k + batch * k_batch * 8, rows, positions + batch * positions_batch * 8,
        row_offsets(tokens, positions_token), inverses, norms, rows, 0, lanes, live, inside, eps,
        HEADS, HEAD_DIM, HEADS, HAS_POSITIONS, True,
    )  # fmt: skip
    total = tl.zeros([BLOCK], tl.float32)
    for head in tl.static_range(HEADS):
        operand, factor, vector, middle = key_parameters(
            means + batch * 2 * C, d_kv + batch * C * HEAD_DIM, d_k_mean + batch * C, head, lanes,
            inside, C, HEAD_DIM, OPERAND,
        )  # fmt: skip
        values, double = centred_values(
            v + batch * v_batch * 8, v_rows, head * HEAD_DIM + lanes, live, inside, middle, OPERAND
        )
        _, _, product = key_head(
            us[head], inverse_norm, values, tl.trans(operand), factor * double, vector
        )
        total += product
    places = (batch * N + tokens) * 3
    tl.store(norms + places, inverse_norm, mask=live)
    tl.store(norms + places + 1, sixths, mask=live)
    tl.store(norms + places + 2, total, mask=live)


@kernel
def backward_keys(
    k, k_batch, k_token, v, v_batch, v_token, positions, positions_batch, positions_token,
    grad, grad_batch, grad_token, scale, norms, means, d_kv, d_k_mean, weight, d_k, d_v, d_scale,
    H, W, sizes, rows, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr,
    K: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr,
    HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v of a region, and its part of that of the scale.

    GROUP is all heads, or 1 with ``norms`` of :func:`key_norms`. Grid (B * h / GROUP, regions). ``d_k``,
    ``d_v (B, N, C)`` contiguous, ``d_scale (B, regions, C)`` float32, without its factor.
    """
    batch, first_head = program_heads(HEADS, GROUP)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    k += batch * k_batch * 8
    v += batch * v_batch * 8
    positions += batch * positions_batch * 8
    d_k += batch * H * W * C
    d_v += batch * H * W * C
    d_scale += (batch * tl.num_programs(1) + tl.program_id(1)) * C
    if GROUP < HEADS:
        norms += batch * H * W * 3
    pitch = W
    H, W = valid_size(sizes, batch, H, W, HAS_SIZES)

    inverses = inverse_scales(scale, first_head, lanes, inside, HEAD_DIM, GROUP, HAS_SCALE)
    parameters = ()
    scales = ()
    for g in tl.static_range(GROUP):
        parameters = parameters + (
            key_parameters(
                means + batch * 2 * C, d_kv + batch * C * HEAD_DIM, d_k_mean + batch * C,
                first_head + g, lanes, inside, C, HEAD_DIM, OPERAND,
            ),
        )  # fmt: skip
        scales = scales + (tl.zeros([D, 16], tl.float32),)
    y, x, bottom = region_tokens(tl.program_id(1), H, W, rows, BLOCK, GROUPS, COLUMNS)
    for step in range(0, rows, BLOCK // (GROUPS * COLUMNS)):
        live = y + step < bottom
        tokens = ((y + step) * pitch + x).to(tl.int64)
        v_rows = row_offsets(tokens, v_token)
        us, inverse_norm, sixths = focus(
            k, row_offsets(tokens, k_token), positions, row_offsets(tokens, positions_token),
            inverses, norms, tokens * 3, first_head, lanes, live, inside, eps,
            HEADS, HEAD_DIM, GROUP, HAS_POSITIONS, True,
        )  # fmt: skip
        product = tl.zeros([BLOCK], tl.float32)
        heads = ()
        for g in tl.static_range(GROUP):
            operand, factor, vector, middle = parameters[g]
            channels = (first_head + g) * HEAD_DIM + lanes
            values, double = centred_values(v, v_rows, channels, live, inside, middle, OPERAND)
            c, d_focused, part = key_head(
                us[g], inverse_norm, values, tl.trans(operand), factor * double, vector
            )
            product += part
            heads = heads + ((c, d_focused),)
        if GROUP < HEADS:
            product = tl.load(norms + tokens * 3 + 2, mask=live, other=0.0)

        # f = n c / ||c||: d loss / du is (3 t^2 d_f + product (t - 3 t^2 c / ||c||^2)) / ||c||.
        ratio = tl.where(live, tl.rsqrt(sixths), 0.0)
        along = product * ratio
        outer = along * (3.0 / sixths)
        new_scales = ()
        for g in tl.static_range(GROUP):
            operand, factor, _, _ = parameters[g]
            c, d_focused = heads[g]
            channels = (first_head + g) * HEAD_DIM + lanes
            t = us[g] * inverse_norm[:, None]
            d_u = d_focused * (3.0 * ratio)[:, None] - outer[:, None] * c
            d_u = d_u * (t * t) + along[:, None] * t
            d_x = tl.where(is_positive(us[g], inverses[g], eps), d_u * inverses[g][None, :], 0.0)
            store_tile(d_k, tokens * C, channels, live, inside, d_x)
            new_scales = new_scales + (add_column_sums(scales[g], d_u * us[g], OPERAND, False),)
            lengths = ratio / inverse_norm * (factor / headroom(OPERAND))
            d_values = multiply((c * headroom(OPERAND)).to(OPERAND), operand) * lengths[:, None]
            store_tile(d_v, tokens * C, channels, live, inside, d_values)
        scales = new_scales
    for g in tl.static_range(GROUP):
        channels = (first_head + g) * HEAD_DIM + lanes
        tl.store(d_scale + channels, tl.sum(scales[g], axis=1), mask=inside)
    if K > 0:
        # Other threads of the program read what was stored.
        tl.debug_barrier()
        for g in range(GROUP):
            add_convolution(
                grad + batch * grad_batch * 8, grad_token, weight, weight, d_v, C,
                (first_head + g) * HEAD_DIM, tl.program_id(1), H, W, pitch, rows,
                HEAD_DIM, D, K, GROUPS, COLUMNS, True, False,
            )  # fmt: skip


@kernel
def backward_depthwise(
    v, v_batch, v_token, grad, grad_batch, grad_token, d_taps,
    regions, items, items_per_split, H, W, sizes, rows,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr, K: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """One split's part of the gradients of the depthwise weight and bias.

    Grid (splits,); an item is a region of one head of one batch entry. ``d_taps (splits, K*K + 1, d)``
    float32: by row, then column of the kernel; the bias last.

    Walks down the rows: a value meets the gradients of the K rows that it reaches, which stay in registers
    with all sums.
    """
    split = tl.program_id(0)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    sums = ()
    for _ in tl.static_range(K * K + 1):
        sums = sums + (tl.zeros([GROUPS, D], tl.float32),)
    for item in range(split * items_per_split, tl.minimum((split + 1) * items_per_split, items)):
        batch = (item // (regions * HEADS)).to(tl.int64)
        channels = (item // regions % HEADS) * HEAD_DIM + lanes
        height, width = valid_size(sizes, batch, H, W, HAS_SIZES)
        top, left = region_groups(
            item % regions, tl.arange(0, GROUPS), width, rows, GROUPS, COLUMNS
        )
        bottom = tl.minimum(top + rows, height)
        image = v + batch * v_batch * 8
        gradient = grad + batch * grad_batch * 8
        window = ()
        for _ in tl.static_range(K * COLUMNS):
            window = window + (tl.zeros([GROUPS, D], tl.float32),)
        for line in range(rows + K - 1):
            y = top + line - K // 2
            newest = y + K // 2
            moved = ()
            bias = sums[K * K]
            for j in tl.static_range(COLUMNS):
                for i in tl.static_range(K - 1):
                    moved = moved + (window[j * K + i + 1],)
                live = (newest < bottom) & (left + j < width)
                places = row_offsets(newest * W + left + j, grad_token)
                g = load_tile(gradient, places, channels, live, inside).to(tl.float32)
                moved = moved + (g,)
                bias += g
            window = moved
            totals = sums
            row_exists = (y >= 0) & (y < height)
            for s in tl.static_range(COLUMNS + K - 1):
                x = left + s - K // 2
                live = row_exists & (x >= 0) & (x < width)
                value = load_tile(image, row_offsets(y * W + x, v_token), channels, live, inside)
                value = value.to(tl.float32)
                grown = ()
                for tap in tl.static_range(K * K):
                    total = totals[tap]
                    if s - tap % K >= 0 and s - tap % K < COLUMNS:
                        total += value * window[(s - tap % K) * K + K - 1 - tap // K]
                    grown = grown + (total,)
                totals = grown
            sums = totals + (bias,)
    for tap in tl.static_range(K * K + 1):
        tl.store(
            d_taps + (split * (K * K + 1) + tap) * HEAD_DIM + lanes,
            tl.sum(sums[tap], axis=0),
            mask=inside,
        )


@triton.jit
def sum_rows(rows, count, size, index, BLOCK_ROWS: tl.constexpr):
    """``(count, size)`` summed over its rows, at ``index``, always in the same order."""
    sums = tl.zeros(index.shape, tl.float32)
    for start in range(0, count, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        mask = (row < count)[:, None] & (index < size)[None, :]
        places = row.to(tl.int64)[:, None] * size + index[None, :]
        sums += tl.sum(tl.load(rows + places, mask=mask, other=0.0).to(tl.float32), axis=0)
    return sums


@triton.jit
def sum_taps(
    parts, count, d_weight, d_bias, block,
    HEAD_DIM: tl.constexpr, K: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of the gradients of weight ``(d, 1, K, K)`` and bias, where HAS_WEIGHT and HAS_BIAS.

    ``parts (count, K*K + 1, d)`` are those of :func:`backward_depthwise`.
    """
    index = block * BLOCK + tl.arange(0, BLOCK)
    sums = sum_rows(parts, count, (K * K + 1) * HEAD_DIM, index, BLOCK_ROWS)
    tap = index // HEAD_DIM
    channel = index % HEAD_DIM
    if HAS_WEIGHT:
        place = channel * (K * K) + tap
        tl.store(d_weight + place, sums.to(d_weight.dtype.element_ty), mask=tap < K * K)
    if HAS_BIAS:
        tl.store(d_bias + channel, sums.to(d_bias.dtype.element_ty), mask=tap == K * K)


@triton.jit
def sum_scales(
    parts, count, scale, d_scale, block,
    C: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of the gradient of the scale, from ``parts (count, C)``."""
    index = block * BLOCK + tl.arange(0, BLOCK)
    inside = index < C
    sums = sum_rows(parts, count, C, index, BLOCK_ROWS)
    # u = (ReLU + eps) / softplus(s), and softplus' is the sigmoid.
    s = tl.load(scale + index, mask=inside, other=0.0).to(tl.float32)
    slope = tl.sigmoid(s) * inverse_softplus(scale, index, inside, True)
    tl.store(d_scale + index, (-sums * slope).to(d_scale.dtype.element_ty), mask=inside)


@triton.jit
def sum_batch(x, total, B, size, block, BLOCK: tl.constexpr):
    """One block of ``x (B, size)`` summed over the batch."""
    index = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    sums = tl.zeros([BLOCK], tl.float32)
    for b in range(B):
        sums += tl.load(x + b * size + index, mask=inside, other=0.0).to(tl.float32)
    tl.store(total + index, sums.to(total.dtype.element_ty), mask=inside)


@kernel
def sum_parameters(
    tap_parts, tap_rows, d_weight, d_bias, scale_parts, scale_rows, scale, d_scale, d_k,
    d_positions, B, size,
    C: tl.constexpr, HEAD_DIM: tl.constexpr, K: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_POSITIONS: tl.constexpr, TAP_BLOCKS: tl.constexpr,
    SCALE_BLOCKS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
    POSITIONS_BLOCK: tl.constexpr,
):  # fmt: skip
    """The parameters' gradients from their parts: :func:`sum_taps`, :func:`sum_scales`, :func:`sum_batch`.

    Grid (TAP_BLOCKS + SCALE_BLOCKS + blocks of the positions,). ``d_k (B, size)``, size = N*C.
    """
    block = tl.program_id(0)
    if block < TAP_BLOCKS:
        if TAP_BLOCKS > 0:
            sum_taps(
                tap_parts, tap_rows, d_weight, d_bias, block,
                HEAD_DIM, K, HAS_WEIGHT, HAS_BIAS, BLOCK_ROWS, BLOCK,
            )  # fmt: skip
    elif block < TAP_BLOCKS + SCALE_BLOCKS:
        if SCALE_BLOCKS > 0:
            sum_scales(
                scale_parts, scale_rows, scale, d_scale, block - TAP_BLOCKS, C, BLOCK_ROWS, BLOCK
            )
    else:
        if HAS_POSITIONS:
            sum_batch(d_k, d_positions, B, size, block - TAP_BLOCKS - SCALE_BLOCKS, POSITIONS_BLOCK)
