"""Backward kernels: queries, what several heads share, keys and values, depthwise weights, sums.

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
    grow,
    headroom,
    inverse_softplus,
    is_positive,
    kernel,
    load_matrix,
    load_norms,
    load_tile,
    multiply,
    multiply_add,
    program_heads,
    rectify,
    region_groups,
    region_tile,
    row_offsets,
    store_columns,
    store_matrix,
    store_pieces,
    sum_split_block,
    tile_below,
    tile_lanes,
    tile_pieces,
    tile_tokens,
    valid_count,
    valid_size,
)


@triton.jit
def load_queries(
    q, q_token, grad, grad_token, norms, inverse, pieces, tokens, live, eps,
    HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """A head's tile of queries u, the rows' 1 / n, ||c|| and floor, and the gradients of their outputs.

    The last are for products alone, which read shared memory: their columns are the channels in order.
    """
    u = rectify(
        q, q_token, q, q_token, inverse, pieces, eps, live.shape[0], HEAD_DIM, False, OPERAND
    )
    inverse_norm, length = load_norms(norms, tokens, live)
    floor = eps * length * inverse_norm
    channels = tl.arange(0, inverse.shape[0])
    rows = row_offsets(tokens, grad_token)
    gradient = load_tile(grad, rows, channels, live, channels < HEAD_DIM)
    return u, inverse_norm, length, floor, gradient.to(OPERAND)


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
        c, G kv^T, 1 / den, den * d loss / ds, and d loss / d floor.
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
    slope = (centred * floor - product) * reciprocal
    d_floor = -(centred * total + product) * (reciprocal * reciprocal)
    return c, back, reciprocal, slope, d_floor


@triton.jit
def query_gradient(u, c, back, inverse_norm, length, floor, reciprocal, d_sum, d_floor, mean):
    """d loss / du of one head of a tile of queries, from what :func:`query_head` returns.

    d_floor is the sum over the heads: the norms of a row are in the normalisers of all of them.
    """
    # d loss / du is 1 / n of d loss / dt. Of floor = eps ||c|| / n, d / dt is 3 t^2 c / ||c||^2 - t.
    d_length = d_floor * floor * inverse_norm
    outer = (d_length / length) * (3.0 / length)
    t = u * inverse_norm[:, None]
    d_c = back * (3.0 * inverse_norm * reciprocal)[:, None]
    d_c += (3.0 * inverse_norm * d_sum)[:, None] * mean[None, :]
    return (d_c + outer[:, None] * c) * (t * t) - d_length[:, None] * t


@triton.jit
def store_gradient(
    d_x, stride, pieces, d_u, u, inverse, eps, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr
):
    """Store d loss / dx of rows u that were rectified, see :func:`~.tiles.load_pieces`."""
    gradient = tl.where(is_positive(u, inverse, eps), d_u * inverse[None, :], 0.0)
    store_pieces(d_x, stride, pieces, gradient, HEAD_DIM, OPERAND)


@triton.jit
def load_kv(kv, rows, columns, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr):
    """:func:`~.tiles.load_matrix` transposed as an operand, and what to multiply its products with."""
    operand, factor = as_operand(load_matrix(kv, rows, columns, HEAD_DIM), OPERAND)
    return tl.trans(operand), factor


@triton.jit
def share(shares, batch, head, N, HEADS: tl.constexpr):
    """Where a head has its four numbers of the rows: ``shares (B, h, N, 4)``."""
    return shares + (batch * HEADS + head) * 4 * N


@triton.jit
def sum_shares(shares, batch, number, tokens, live, N, HEADS: tl.constexpr):
    """A number of rows, summed over the heads, always in the same order."""
    total = tl.zeros(live.shape, tl.float32)
    for head in tl.static_range(HEADS):
        own = share(shares, batch, head, N, HEADS)
        total += tl.load(own + tokens * 4 + number, mask=live, other=0.0)
    return total


@kernel
def backward_queries(
    q, q_batch, q_token, grad, grad_batch, grad_token, scale, norms, means, kv, d_q, d_kv, d_k_mean,
    d_scale, shares,
    N, sizes, pitch, tiles_per_split, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """One split's part of the gradients of kv and k_mean (both / N) of one head.

    With v = centre + (v - centre), the gradient of f(k) is (v - centre) d_kv^T + d_k_mean, neither of
    which is a small difference of large numbers.

    Of a single head also the gradient of q, and its part of that of the scale. Else what :func:`join_heads`
    needs for them: of ``shares (B, h, N, 4)`` float32 the first three, which are 1 / den, d loss / ds and
    d loss / d floor.

    Grid (B * h, splits). ``d_q (B, N, C)`` contiguous; ``d_kv (B, splits, h, d, d)``, ``d_k_mean (B, splits,
    h, d)`` and ``d_scale (B, splits, C)`` float32, the last without its factor.
    """
    batch, head = program_heads(HEADS, 1)
    split = tl.program_id(1)
    lanes = tile_lanes(D, OPERAND)
    natural = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    channels = head * HEAD_DIM + lanes
    layout = tile_pieces(BLOCK, D, OPERAND)
    q += batch * q_batch * 8 + head * HEAD_DIM
    grad += batch * grad_batch * 8 + head * HEAD_DIM
    d_q += batch * N * C + head * HEAD_DIM
    norms += batch * N * 4
    means += batch * 2 * C
    count, width = valid_count(sizes, batch, N, HAS_SIZES)

    inverse = inverse_softplus(scale, channels, inside, HAS_SCALE)
    matrix, factor = load_kv(
        kv + (batch * C + head * HEAD_DIM) * HEAD_DIM, lanes, natural, HEAD_DIM, OPERAND
    )
    mean = tl.load(means + channels, mask=inside, other=0.0)
    centre = as_columns(
        tl.load(means + C + head * HEAD_DIM + natural, mask=natural < HEAD_DIM, other=0.0), OPERAND
    )
    d_matrix = tl.zeros([D, D], tl.float32)
    d_mean = tl.zeros([D, 16], tl.float32)
    scales = tl.zeros([D, 16], tl.float32)
    unit = tl.full([], 1e-30, tl.float32)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(count, BLOCK))
    for tile in range(split * tiles_per_split, last):
        tokens, live, pieces = tile_tokens(tile, layout, count, width, pitch, BLOCK, HAS_SIZES)
        u, inverse_norm, length, floor, gradient = load_queries(
            q, q_token, grad, grad_token, norms, inverse, pieces, tokens, live, eps, HEAD_DIM, OPERAND
        )  # fmt: skip
        c, back, reciprocal, slope, d_floor = query_head(
            u, inverse_norm, floor, gradient, matrix, factor, mean, centre
        )
        d_sum = slope * reciprocal
        if HEADS == 1:
            d_u = query_gradient(
                u, c, back, inverse_norm, length, floor, reciprocal, d_sum, d_floor, mean
            )
            store_gradient(d_q, C // 8, pieces, d_u, u, inverse, eps, HEAD_DIM, OPERAND)
            scales = add_column_sums(scales, d_u * u, OPERAND)
        else:
            column = tl.arange(0, 4)[None, :]
            numbers = tl.where(column == 1, d_sum[:, None], d_floor[:, None])
            numbers = tl.where(column == 0, reciprocal[:, None], numbers)
            own = share(shares, batch, head, N, HEADS)
            store_columns(own, tokens, live, numbers, column < 3)
        if OPERAND == tl.float16:
            unit, shrink = grow(unit, tl.where(live, reciprocal, 0.0), OPERAND)
            d_matrix *= shrink
            d_mean *= shrink
            reciprocal /= unit
        weighted = tl.trans((c * reciprocal[:, None]).to(OPERAND))
        slopes, slope_factor = as_columns(slope, OPERAND)
        if OPERAND == tl.float16:
            d_mean += multiply(weighted, slopes) * slope_factor
        else:
            d_mean = multiply_add(weighted, slopes, d_mean)
        d_matrix = multiply_add(weighted, gradient, d_matrix)

    # f(k) enters kv and k_mean divided by N.
    factor = unit / count if OPERAND == tl.float16 else 1.0 / count
    place = (batch * tl.num_programs(1) + split) * C + head * HEAD_DIM
    store_matrix(d_kv + place * HEAD_DIM, lanes, natural, d_matrix * factor, HEAD_DIM)
    tl.store(d_k_mean + place + lanes, tl.sum(d_mean, axis=1) * factor, mask=inside)
    if HEADS == 1:
        tl.store(d_scale + place + lanes, tl.sum(scales, axis=1), mask=inside)


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


@kernel
def join_heads(
    q, q_batch, q_token, k, k_batch, k_token, v, v_batch, v_token,
    positions, positions_batch, positions_token, grad, grad_batch, grad_token,
    scale, norms, means, kv, d_kv, d_k_mean, d_q, d_scale, shares,
    N, sizes, pitch, tiles_per_split, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_SCALE: tl.constexpr,
    OPERAND: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Between :func:`backward_queries` and :func:`backward_keys`, of one head of several.

    The gradient of q, which needs the sum of all heads' d loss / d floor, with its part of that of the scale;
    and of the keys what other heads need: the last of ``shares``, dot products of c and the gradient of f(k).
    Grid (B * h, splits, 2), queries first; other arguments as in those kernels.
    """
    batch, head = program_heads(HEADS, 1)
    split = tl.program_id(1)
    lanes = tile_lanes(D, OPERAND)
    inside = lanes < HEAD_DIM
    channels = head * HEAD_DIM + lanes
    place = batch * C + head * HEAD_DIM
    layout = tile_pieces(BLOCK, D, OPERAND)
    norms += (batch * 2 + tl.program_id(2)) * N * 2
    means += batch * 2 * C
    count, width = valid_count(sizes, batch, N, HAS_SIZES)
    inverse = inverse_softplus(scale, channels, inside, HAS_SCALE)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tl.cdiv(count, BLOCK))
    if tl.program_id(2) == 0:
        q += batch * q_batch * 8 + head * HEAD_DIM
        grad += batch * grad_batch * 8 + head * HEAD_DIM
        d_q += batch * N * C + head * HEAD_DIM
        matrix, factor = load_kv(kv + place * HEAD_DIM, lanes, tl.arange(0, D), HEAD_DIM, OPERAND)
        mean = tl.load(means + channels, mask=inside, other=0.0)
        # There are registers enough for a tile of sums here: warps need not share them.
        scales = tl.zeros([BLOCK, D], tl.float32)
        for query_tile in range(first, last):
            tokens, live, pieces = tile_tokens(
                query_tile, layout, count, width, pitch, BLOCK, HAS_SIZES
            )
            u, inverse_norm, length, floor, gradient = load_queries(
                q, q_token, grad, grad_token, norms, inverse, pieces, tokens, live, eps, HEAD_DIM,
                OPERAND,
            )  # fmt: skip
            back = multiply(gradient, matrix) * factor
            own = share(shares, batch, head, N, HEADS) + tokens * 4
            reciprocal = tl.load(own, mask=live, other=0.0)
            d_sum = tl.load(own + 1, mask=live, other=0.0)
            d_floor = sum_shares(shares, batch, 2, tokens, live, N, HEADS)
            d_u = query_gradient(
                u, cube(u, inverse_norm), back, inverse_norm, length, floor, reciprocal, d_sum,
                d_floor, mean,
            )  # fmt: skip
            store_gradient(d_q, C // 8, pieces, d_u, u, inverse, eps, HEAD_DIM, OPERAND)
            scales += d_u * u
        d_scale += (batch * tl.num_programs(1) + split) * C
        tl.store(d_scale + channels, tl.sum(scales, axis=0), mask=inside)
    else:
        k += batch * k_batch * 8 + head * HEAD_DIM
        v += batch * v_batch * 8 + head * HEAD_DIM
        positions += batch * positions_batch * 8 + head * HEAD_DIM
        matrix, factor = load_kv(d_kv + place * HEAD_DIM, lanes, lanes, HEAD_DIM, OPERAND)
        vector = tl.load(d_k_mean + place + lanes, mask=inside, other=0.0)
        middle = tl.load(means + C + channels, mask=inside, other=0.0)
        for key_tile in range(first, last):
            tokens, live, pieces = tile_tokens(
                key_tile, layout, count, width, pitch, BLOCK, HAS_SIZES
            )
            u = rectify(
                k, k_token, positions, positions_token, inverse, pieces, eps, BLOCK, HEAD_DIM,
                HAS_POSITIONS, OPERAND,
            )  # fmt: skip
            inverse_norm, _ = load_norms(norms, tokens, live)
            values, double = centred_values(v, v_token, pieces, middle, BLOCK, HEAD_DIM, OPERAND)
            _, _, product = key_head(u, inverse_norm, values, matrix, factor * double, vector)
            own = share(shares, batch, head, N, HEADS)
            column = tl.arange(0, 4)[None, :]
            products = tl.broadcast_to(product[:, None], [BLOCK, 4])
            store_columns(own, tokens, live, products, column == 3)


@kernel
def backward_keys(
    k, k_batch, k_token, v, v_batch, v_token, positions, positions_batch, positions_token,
    grad, grad_batch, grad_token, scale, norms, means, d_kv, d_k_mean, weight, d_k, d_v, d_scale,
    shares,
    H, W, sizes, rows, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    BLOCK: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr,
    K: tl.constexpr, HAS_POSITIONS: tl.constexpr, HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr,
    HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v of a region of one head, and its part of that of the scale.

    Grid (B * h, regions). ``d_k``, ``d_v (B, N, C)`` contiguous, ``d_scale (B, regions, C)`` float32, without
    its factor. ``shares`` of :func:`join_heads`, read if there are several heads.
    """
    batch, head = program_heads(HEADS, 1)
    lanes = tile_lanes(D, OPERAND)
    inside = lanes < HEAD_DIM
    channels = head * HEAD_DIM + lanes
    place = batch * C + head * HEAD_DIM
    N = H * W
    k += batch * k_batch * 8 + head * HEAD_DIM
    v += batch * v_batch * 8 + head * HEAD_DIM
    positions += batch * positions_batch * 8 + head * HEAD_DIM
    d_k += batch * N * C + head * HEAD_DIM
    d_v += batch * N * C
    norms += (batch * 2 + 1) * N * 2
    pitch = W
    H, W = valid_size(sizes, batch, H, W, HAS_SIZES)

    inverse = inverse_softplus(scale, channels, inside, HAS_SCALE)
    matrix, factor = load_kv(d_kv + place * HEAD_DIM, lanes, lanes, HEAD_DIM, OPERAND)
    vector = tl.load(d_k_mean + place + lanes, mask=inside, other=0.0)
    middle = tl.load(means + (batch * 2 + 1) * C + channels, mask=inside, other=0.0)
    scales = tl.zeros([D, 16], tl.float32)
    region = tl.program_id(1)
    layout = tile_pieces(BLOCK, D, OPERAND)
    first_tile = region_tile(region, layout, H, W, rows, BLOCK, GROUPS, COLUMNS)
    for step in range(0, rows, BLOCK // (GROUPS * COLUMNS)):
        tokens, live, pieces = tile_below(first_tile, step, pitch)
        u = rectify(
            k, k_token, positions, positions_token, inverse, pieces, eps, BLOCK, HEAD_DIM, HAS_POSITIONS,
            OPERAND,
        )  # fmt: skip
        inverse_norm, length = load_norms(norms, tokens, live)
        values, double = centred_values(v, v_token, pieces, middle, BLOCK, HEAD_DIM, OPERAND)
        c, d_focused, product = key_head(u, inverse_norm, values, matrix, factor * double, vector)
        if HEADS > 1:
            product = sum_shares(shares, batch, 3, tokens, live, N, HEADS)

        # f = n c / ||c||: d loss / du is (3 t^2 d_f + product (t - 3 t^2 c / ||c||^2)) / ||c||.
        ratio = tl.where(live, 1.0 / length, 0.0)
        along = product * ratio
        outer = (along * ratio) * (3.0 * ratio)
        t = u * inverse_norm[:, None]
        d_u = d_focused * (3.0 * ratio)[:, None] - outer[:, None] * c
        d_u = d_u * (t * t) + along[:, None] * t
        store_gradient(d_k, C // 8, pieces, d_u, u, inverse, eps, HEAD_DIM, OPERAND)
        scales = add_column_sums(scales, d_u * u, OPERAND)
        lengths = ratio / inverse_norm * (factor / headroom(OPERAND))
        d_values = multiply((c * headroom(OPERAND)).to(OPERAND), tl.trans(matrix))
        d_values *= lengths[:, None]
        store_pieces(d_v + head * HEAD_DIM, C // 8, pieces, d_values, HEAD_DIM, OPERAND)
    d_scale += (batch * tl.num_programs(1) + region) * C
    tl.store(d_scale + channels, tl.sum(scales, axis=1), mask=inside)
    if K > 0:
        # Other threads of the program read what was stored.
        tl.debug_barrier()
        add_convolution(
            grad + batch * grad_batch * 8, grad_token, weight, weight, d_v, C, head * HEAD_DIM,
            region, H, W, pitch, rows, HEAD_DIM, D, K, GROUPS, COLUMNS, True, False,
        )  # fmt: skip


@triton.jit
def depthwise_part(
    v, v_batch, v_token, grad, grad_batch, grad_token, d_taps,
    regions, items, items_per_split, H, W, sizes, rows, split,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr, K: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """One split's part of the gradients of the depthwise weight and bias.

    An item is a region of one head of one batch entry. ``d_taps (splits, K*K + 1, d)`` float32: by row, then
    column of the kernel; the bias last.

    Walks down the rows: a value meets the gradients of the K rows that it reaches, which stay in registers
    with all sums.
    """
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


@kernel
def backward_depthwise(
    v, v_batch, v_token, grad, grad_batch, grad_token, d_taps,
    regions, items, items_per_split, H, W, sizes, rows,
    sum_programs, matrix_parts, matrices, vector_parts, vectors, vector_stride, splits,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    GROUPS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, HAS_SIZES: tl.constexpr,
    HAS_SUMS: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """:func:`depthwise_part`, and beside it, which is a launch less, :func:`~.tiles.sum_split_block`.

    Grid (sum_programs + splits of the former,). Without HAS_SUMS there are no sums.
    """
    program = tl.program_id(0)
    if program < sum_programs:
        if HAS_SUMS:
            sum_split_block(
                matrix_parts, matrices, vector_parts, vectors, vector_stride, splits, program,
                C, HEAD_DIM, SPLIT_BLOCK,
            )  # fmt: skip
    else:
        depthwise_part(
            v, v_batch, v_token, grad, grad_batch, grad_token, d_taps,
            regions, items, items_per_split, H, W, sizes, rows, program - sum_programs,
            HEADS, HEAD_DIM, D, GROUPS, COLUMNS, K, HAS_SIZES,
        )  # fmt: skip


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
