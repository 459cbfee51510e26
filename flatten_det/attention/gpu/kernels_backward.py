"""Backward kernels: queries, keys and values, depthwise weights.

Notation as in :mod:`.tiles`: u is a rectified row, t = u / max(u), G the gradient of the output. A row's
largest entry may be treated as a constant, because the result does not depend on it.
"""

import triton
import triton.language as tl

from .tiles import (
    band_tile,
    depthwise_rows,
    load_inverse_scale,
    load_keys,
    load_matrix,
    load_norms,
    load_tile,
    multiply,
    rectify,
    row_norms,
    row_offsets,
    store_tile,
)


@triton.jit
def query_head(
    q,
    rows,
    grad,
    grad_rows,
    inverse_scale,
    centre,
    kv,
    k_mean,
    head,
    shrink,
    floor,
    live,
    eps,
    inside,
    lanes,
    HEAD_DIM: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head of a tile of queries.

    With c = t^3, s = c . k_mean and den = s + floor, the head's output is centre s / den + (c kv) / den.

    Args:
        centre, kv, k_mean: of this batch entry.

    Returns:
        x, t, inverse scale, k_mean of the head, G / den, its product with kv^T, and d loss / ds and
        d loss / d floor.
    """
    channels = head * HEAD_DIM + lanes
    inverse = load_inverse_scale(inverse_scale, channels, inside, HAS_SCALE)
    x = load_tile(q, rows, channels, live, inside)
    t = rectify(x, inverse, eps) * shrink[:, None]
    cubes = t * t * t
    matrix = load_matrix(kv + head * HEAD_DIM * HEAD_DIM, lanes, inside, HEAD_DIM)
    mean = tl.load(k_mean + head * HEAD_DIM + lanes, mask=inside, other=0.0)
    total = tl.sum(cubes * mean[None, :], axis=1)
    reciprocal = 1.0 / (total + floor)
    weighted = load_tile(grad, grad_rows, channels, live, inside) * reciprocal[:, None]
    back = multiply(weighted, tl.trans(matrix), PRECISION)
    middle = tl.load(centre + channels, mask=inside, other=0.0)
    centred = tl.sum(weighted * middle[None, :], axis=1)
    product = tl.sum(cubes * back, axis=1)
    # Each on its own: the difference of the two is `centred`, which is far larger than one of them where
    # the eps is negligible, and than the other where it rules.
    d_sum = (centred * floor - product) * reciprocal
    d_floor = -(centred * total + product) * reciprocal
    return x, t, inverse, mean, weighted, back, d_sum, d_floor


@triton.jit(do_not_specialize=["q_batch", "q_token", "grad_batch", "grad_token", "N"])
def query_norms(
    q,
    q_batch,
    q_token,
    grad,
    grad_batch,
    grad_token,
    inverse_scale,
    centre,
    kv,
    k_mean,
    norms,
    N,
    eps,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """What a row's heads share, for programs that see one head only: ``norms (B, 4, N)`` float32.

    Three are those of :func:`row_norms`, the fourth is d loss / d floor. Grid (B, tiles).
    """
    batch = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = tokens < N
    lanes = tl.arange(0, D)
    q += batch * q_batch * 8
    rows = row_offsets(tokens, q_token)
    largest, squares, sixths = row_norms(
        q, rows, q, rows, inverse_scale, live, eps, C, CHUNK, False, HAS_SCALE
    )
    d_floor = tl.zeros([BLOCK], tl.float32)
    for head in range(HEADS):
        results = query_head(
            q, rows, grad + batch * grad_batch * 8, row_offsets(tokens, grad_token), inverse_scale,
            centre + batch * C, kv + batch * C * HEAD_DIM, k_mean + batch * C, head, 1.0 / largest,
            eps * tl.sqrt(sixths / squares) / largest, live, eps, lanes < HEAD_DIM, lanes,
            HEAD_DIM, HAS_SCALE, PRECISION,
        )  # fmt: skip
        d_floor += results[7]
    norms += batch * 4 * N
    tl.store(norms + tokens, largest, mask=live)
    tl.store(norms + N + tokens, squares, mask=live)
    tl.store(norms + 2 * N + tokens, sixths, mask=live)
    tl.store(norms + 3 * N + tokens, d_floor, mask=live)


@triton.jit(
    do_not_specialize=[
        "q_batch",
        "q_token",
        "grad_batch",
        "grad_token",
        "N",
        "tiles_per_split",
    ]
)
def backward_queries(
    q,
    q_batch,
    q_token,
    grad,
    grad_batch,
    grad_token,
    inverse_scale,
    norms,
    centre,
    kv,
    k_mean,
    d_q,
    d_kv,
    d_k_mean,
    d_scale,
    N,
    tiles_per_split,
    eps,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of q, and one split's part of the gradients of kv, k_mean (both / N) and of the scale.

    With v = centre + (v - centre), the gradient of phi(k) is (v - centre) d_kv^T + d_k_mean, neither of
    which is a small difference of large numbers.

    GROUP is all heads, or 1 with ``norms`` of :func:`query_norms`. Grid (B * h / GROUP, splits).
    ``d_q (B, N, C)`` contiguous; ``d_kv (B, splits, h, d, d)``, ``d_k_mean (B, splits, h, d)`` and
    ``d_scale (B, splits, C)`` float32, the last without its factor.
    """
    groups: tl.constexpr = HEADS // GROUP
    batch = (tl.program_id(0) // groups).to(tl.int64)
    first_head = (tl.program_id(0) % groups) * GROUP
    split = tl.program_id(1)
    lanes = tl.arange(0, D)
    q += batch * q_batch * 8
    grad += batch * grad_batch * 8
    d_q += batch * N * C
    centre += batch * C
    kv += batch * C * HEAD_DIM
    k_mean += batch * C

    inside = lanes < HEAD_DIM
    matrices = ()
    sums = ()
    scales = ()
    for _g in tl.static_range(GROUP):
        matrices = matrices + (tl.zeros([D, D], tl.float32),)
        sums = sums + (tl.zeros([D], tl.float32),)
        scales = scales + (tl.zeros([D], tl.float32),)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(N, BLOCK))
    for tile in range(split * tiles_per_split, last):
        tokens = tile * BLOCK + tl.arange(0, BLOCK)
        live = tokens < N
        rows = row_offsets(tokens, q_token)
        grad_rows = row_offsets(tokens, grad_token)
        if GROUP == HEADS:
            largest, squares, sixths = row_norms(
                q, rows, q, rows, inverse_scale, live, eps, C, CHUNK, False, HAS_SCALE
            )
        else:
            largest, squares, sixths = load_norms(norms + batch * 4 * N, tokens, N, live)
        shrink = 1.0 / largest
        floor = eps * tl.sqrt(sixths / squares) * shrink

        # The norms of a row are in the normalisers of all heads.
        d_floor = tl.zeros([BLOCK], tl.float32)
        if GROUP < HEADS:
            d_floor = tl.load(norms + (batch * 4 + 3) * N + tokens, mask=live, other=0.0)
        elif HEADS > 1:
            for head in range(HEADS):
                results = query_head(
                    q, rows, grad, grad_rows, inverse_scale, centre, kv, k_mean, head, shrink,
                    floor, live, eps, inside, lanes, HEAD_DIM, HAS_SCALE, PRECISION,
                )  # fmt: skip
                d_floor += results[7]

        new_matrices = ()
        new_sums = ()
        new_scales = ()
        for g in tl.static_range(GROUP):
            head = first_head + g
            x, t, inverse, mean, weighted, back, d_sum, part = query_head(
                q, rows, grad, grad_rows, inverse_scale, centre, kv, k_mean, head, shrink, floor,
                live, eps, inside, lanes, HEAD_DIM, HAS_SCALE, PRECISION,
            )  # fmt: skip
            if HEADS == 1:
                d_floor = part
            d_cubes = back + d_sum[:, None] * mean[None, :]
            t2 = t * t
            d_t = 3.0 * t2 * d_cubes
            d_t += (d_floor * floor)[:, None] * (
                t2 * t2 * t * (3.0 / sixths)[:, None] - t * (1.0 / squares)[:, None]
            )
            d_x = tl.where(x > 0.0, d_t * inverse[None, :], 0.0) * shrink[:, None]
            store_tile(d_q, tokens.to(tl.int64) * C, head * HEAD_DIM + lanes, live, inside, d_x)
            cubes = t2 * t
            new_matrices = new_matrices + (
                matrices[g] + multiply(tl.trans(cubes), weighted, PRECISION),
            )
            new_sums = new_sums + (sums[g] + tl.sum(cubes * d_sum[:, None], axis=0),)
            new_scales = new_scales + (scales[g] + tl.sum(d_t * t, axis=0),)
        matrices = new_matrices
        sums = new_sums
        scales = new_scales

    splits = tl.num_programs(1)
    for g in tl.static_range(GROUP):
        head = (batch * splits + split) * HEADS + first_head + g
        # k' enters kv and k_mean divided by N.
        tl.store(
            d_kv + head * HEAD_DIM * HEAD_DIM + lanes[:, None] * HEAD_DIM + lanes[None, :],
            matrices[g] / N,
            mask=inside[:, None] & inside[None, :],
        )
        tl.store(d_k_mean + head * HEAD_DIM + lanes, sums[g] / N, mask=inside)
        tl.store(d_scale + head * HEAD_DIM + lanes, scales[g], mask=inside)


@triton.jit
def key_head(
    k,
    rows,
    positions,
    position_rows,
    v,
    v_rows,
    inverse_scale,
    centre,
    matrix,
    vector,
    channels,
    shrink,
    live,
    eps,
    inside,
    HAS_POSITIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head of a tile of keys.

    Args:
        matrix, vector: of :func:`backward_queries`, summed: ``[D, D]`` and ``[D]`` of this head.

    Returns:
        x, t, inverse scale, the gradient of the focused keys, and its dot product with t^3 per row.
    """
    inverse = load_inverse_scale(inverse_scale, channels, inside, HAS_SCALE)
    x = load_keys(k, rows, positions, position_rows, channels, live, inside, HAS_POSITIONS)
    t = rectify(x, inverse, eps) * shrink[:, None]
    middle = tl.load(centre + channels, mask=inside, other=0.0)
    values = load_tile(v, v_rows, channels, live, inside) - middle[None, :]
    d_focused = multiply(values, tl.trans(matrix), PRECISION) + vector[None, :]
    return x, t, inverse, d_focused, tl.sum(d_focused * (t * t * t), axis=1)


@triton.jit(
    do_not_specialize=[
        "k_batch",
        "k_token",
        "v_batch",
        "v_token",
        "positions_batch",
        "positions_token",
        "grad_batch",
        "grad_token",
        "H",
        "W",
        "heads_per_program",
    ]
)
def backward_keys(
    k,
    k_batch,
    k_token,
    v,
    v_batch,
    v_token,
    positions,
    positions_batch,
    positions_token,
    grad,
    grad_batch,
    grad_token,
    inverse_scale,
    centre,
    d_kv,
    d_k_mean,
    taps,
    d_k,
    d_v,
    d_scale,
    H,
    W,
    heads_per_program,
    eps,
    C: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    D: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of k and v, and one tile's part of that of the scale.

    Grid (B * ceil(h / heads_per_program), band tiles). ``d_k``, ``d_v (B, N, C)`` contiguous,
    ``d_scale (B, band tiles, C)`` float32, without its factor.
    """
    groups = tl.cdiv(HEADS, heads_per_program)
    batch = (tl.program_id(0) // groups).to(tl.int64)
    first_head = (tl.program_id(0) % groups) * heads_per_program
    top, column, live = band_tile(tl.program_id(1), H, W, BLOCK, ROWS)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    k += batch * k_batch * 8
    v += batch * v_batch * 8
    positions += batch * positions_batch * 8
    grad += batch * grad_batch * 8
    d_k += batch * H * W * C
    d_v += batch * H * W * C
    centre += batch * C
    d_kv += batch * C * HEAD_DIM
    d_k_mean += batch * C
    d_scale += (batch * tl.num_programs(1) + tl.program_id(1)) * C

    norms = ()
    products = ()
    for r in tl.static_range(ROWS):
        tokens = (top + r) * W + column
        exists = live & (top + r < H)
        rows = row_offsets(tokens, k_token)
        v_rows = row_offsets(tokens, v_token)
        position_rows = row_offsets(tokens, positions_token)
        largest, squares, sixths = row_norms(
            k, rows, positions, position_rows, inverse_scale, exists, eps, C, CHUNK,
            HAS_POSITIONS, HAS_SCALE,
        )  # fmt: skip
        product = tl.zeros([BLOCK], tl.float32)
        if HEADS > 1:
            for head in range(HEADS):
                matrix = load_matrix(d_kv + head * HEAD_DIM * HEAD_DIM, lanes, inside, HEAD_DIM)
                vector = tl.load(d_k_mean + head * HEAD_DIM + lanes, mask=inside, other=0.0)
                results = key_head(
                    k, rows, positions, position_rows, v, v_rows, inverse_scale, centre, matrix, vector,
                    head * HEAD_DIM + lanes, 1.0 / largest, exists, eps, inside,
                    HAS_POSITIONS, HAS_SCALE, PRECISION,
                )  # fmt: skip
                product += results[4]
        norms = norms + ((largest, squares, sixths),)
        products = products + (product,)

    for head in range(first_head, tl.minimum(first_head + heads_per_program, HEADS)):
        channels = head * HEAD_DIM + lanes
        convolved = ()
        if K > 0:
            convolved = depthwise_rows(
                grad, grad_token, taps, head * HEAD_DIM, lanes, inside, top, column, live, H, W,
                HEAD_DIM, K, ROWS, True,
            )  # fmt: skip
        matrix = load_matrix(d_kv + head * HEAD_DIM * HEAD_DIM, lanes, inside, HEAD_DIM)
        vector = tl.load(d_k_mean + head * HEAD_DIM + lanes, mask=inside, other=0.0)
        scale = tl.zeros([D], tl.float32)
        for r in tl.static_range(ROWS):
            tokens = (top + r) * W + column
            exists = live & (top + r < H)
            largest, squares, sixths = norms[r]
            x, t, inverse, d_focused, product = key_head(
                k, row_offsets(tokens, k_token), positions, row_offsets(tokens, positions_token),
                v, row_offsets(tokens, v_token), inverse_scale, centre, matrix, vector, channels,
                1.0 / largest, exists, eps, inside, HAS_POSITIONS, HAS_SCALE, PRECISION,
            )  # fmt: skip
            if HEADS > 1:
                product = products[r]
            ratio = tl.where(exists, tl.sqrt(squares / sixths), 0.0)
            t2 = t * t
            d_u = 3.0 * t2 * d_focused + product[:, None] * (
                t * (1.0 / squares)[:, None] - t2 * t2 * t * (3.0 / sixths)[:, None]
            )
            d_u *= ratio[:, None]
            scale += tl.sum(d_u * (t * largest[:, None]), axis=0)
            rows = tokens.to(tl.int64) * C
            d_x = tl.where(x > 0.0, d_u * inverse[None, :], 0.0)
            store_tile(d_k, rows, channels, exists, inside, d_x)
            focused = t2 * t * (ratio * largest)[:, None]
            d_values = multiply(focused, matrix, PRECISION)
            if K > 0:
                d_values += convolved[r]
            store_tile(d_v, rows, channels, exists, inside, d_values)
        tl.store(d_scale + channels, scale, mask=inside)


@triton.jit(
    do_not_specialize=[
        "v_batch",
        "v_token",
        "grad_batch",
        "grad_token",
        "tiles",
        "items",
        "items_per_split",
        "H",
        "W",
    ]
)
def backward_depthwise(
    v,
    v_batch,
    v_token,
    grad,
    grad_batch,
    grad_token,
    d_taps,
    tiles,
    items,
    items_per_split,
    H,
    W,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    K: tl.constexpr,
):
    """One split's part of the gradients of the depthwise weight and bias, CHANNELS of each head.

    Grid (splits, channel blocks); an item is a band tile of one head of one batch entry.
    ``d_taps (splits, K*K + 1, d)`` float32: by column, then row of the kernel; the bias last.

    All taps are accumulated at once, per token of the tile, so that v and the gradient are read from
    memory once; few channels per program keep K*K + 1 accumulators in registers.
    """
    split = tl.program_id(0)
    lanes = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = lanes < HEAD_DIM
    sums = ()
    for _tap in tl.static_range(K * K + 1):
        sums = sums + (tl.zeros([BLOCK, CHANNELS], tl.float32),)
    for item in range(split * items_per_split, tl.minimum((split + 1) * items_per_split, items)):
        batch = (item // (tiles * HEADS)).to(tl.int64)
        channels = (item // tiles % HEADS) * HEAD_DIM + lanes
        top, column, live = band_tile(item % tiles, H, W, BLOCK, ROWS)
        image = v + batch * v_batch * 8
        gradient = grad + batch * grad_batch * 8
        grads = ()
        bias = sums[K * K]
        for r in tl.static_range(ROWS):
            rows = row_offsets((top + r) * W + column, grad_token)
            g = load_tile(gradient, rows, channels, live & (top + r < H), inside)
            grads = grads + (g,)
            bias += g
        grown = ()
        for tap_x in tl.static_range(K):
            x = column + tap_x - K // 2
            across = live & (x >= 0) & (x < W)
            values = ()
            for row in tl.static_range(ROWS + K - 1):
                y = top + row - K // 2
                rows = row_offsets(y * W + x, v_token)
                values = values + (
                    load_tile(image, rows, channels, across & (y >= 0) & (y < H), inside),
                )
            for tap_y in tl.static_range(K):
                total = sums[tap_x * K + tap_y]
                for r in tl.static_range(ROWS):
                    total += grads[r] * values[r + tap_y]
                grown = grown + (total,)
        sums = grown + (bias,)
    for tap in tl.static_range(K * K + 1):
        tl.store(
            d_taps + (split * (K * K + 1) + tap) * HEAD_DIM + lanes,
            tl.sum(sums[tap], axis=0),
            mask=inside,
        )
