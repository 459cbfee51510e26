"""Forward kernels: norms of rows, keys and values reduced per head, sum of the splits, queries.

Notation as in :mod:`.tiles`. ``sizes (B, 2)`` int32, read if HAS_SIZES: height and width of the maps without
their padding.
"""

import triton
import triton.language as tl

from .tiles import (
    add_convolution,
    as_columns,
    as_operand,
    centred_values,
    cube,
    focus,
    grow,
    headroom,
    inverse_scales,
    kernel,
    load_matrix,
    load_tile,
    multiply,
    multiply_add,
    program_heads,
    region_tile,
    row_offsets,
    store_matrix,
    store_pieces,
    sum_split_block,
    tile_below,
    tile_lanes,
    tile_pieces,
    tile_tokens,
    valid_count,
    valid_size,
    valid_tokens,
)


@kernel
def row_norms(
    q, q_batch, q_token, k, k_batch, k_token, positions, positions_batch, positions_token, scale,
    norms,
    N, sizes, pitch, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    HAS_POSITIONS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """1 / n and ||c|| of queries and keys, where programs see one head only.

    ``norms (B, 2, N, 2)`` float32, those of the queries first. Grid (tiles, B, 2).
    """
    batch = tl.program_id(1).to(tl.int64)
    count, width = valid_count(sizes, batch, N, HAS_SIZES)
    layout = tile_pieces(BLOCK, D, tl.float32)
    tokens, live, pieces = tile_tokens(
        tl.program_id(0), layout, count, width, pitch, BLOCK, HAS_SIZES
    )
    lanes = tile_lanes(D, tl.float32)
    inverses = inverse_scales(scale, 0, lanes, lanes < HEAD_DIM, HEAD_DIM, HEADS, HAS_SCALE)
    norms += (batch * 2 + tl.program_id(2)) * N * 2
    if tl.program_id(2) == 0:
        focus(
            q + batch * q_batch * 8, q_token, q, q_token, inverses, pieces, norms, tokens, live, 0, eps,
            HEADS, HEAD_DIM, HEADS, False, tl.float32,
        )  # fmt: skip
    else:
        focus(
            k + batch * k_batch * 8, k_token, positions + batch * positions_batch * 8, positions_token,
            inverses, pieces, norms, tokens, live, 0, eps,
            HEADS, HEAD_DIM, HEADS, HAS_POSITIONS, tl.float32,
        )  # fmt: skip


@triton.jit
def centre_of_values(
    v, v_token, centre, count, width, pitch, channels, inside, is_first,
    SAMPLES: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Mean of v over SAMPLES tokens spread over the map, exactly v where all agree; the first stores it."""
    index = (tl.arange(0, SAMPLES) * count) // SAMPLES
    samples = valid_tokens(index, width, pitch, HAS_SIZES)
    first = tl.load(v + channels, mask=inside, other=0.0).to(tl.float32)
    values = load_tile(v, row_offsets(samples, v_token), channels, index < count, inside)
    mean = first + tl.sum(values.to(tl.float32) - first[None, :], axis=0) / SAMPLES
    if is_first:
        tl.store(centre + channels, mean, mask=inside)
    return mean


@kernel
def reduce_keys(
    k, k_batch, k_token, v, v_batch, v_token, positions, positions_batch, positions_token, scale,
    norms, means, kv, k_mean,
    k_mean_stride, N, sizes, pitch, tiles_per_split, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, SAMPLES: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Parts of ``f(k)^T (v - centre) / N`` and ``sum f(k) / N`` of one split, for GROUP heads.

    Both are sums over the same rounded f(k), so that the weights of the attention sum to one. GROUP is all
    heads, which writes ``norms`` unless None, or 1 with those of :func:`row_norms`. Grid (B * h / GROUP,
    splits).

    ``kv (B, splits, h, d, d)`` and ``k_mean (B, splits, h, d)``, whose splits are ``k_mean_stride`` elements
    apart, float32. The centre goes into ``means (B, 2, C)``, beside where the mean of f(k) is to be.
    """
    batch, first_head = program_heads(HEADS, GROUP)
    split = tl.program_id(1)
    lanes = tile_lanes(D, OPERAND)
    inside = lanes < HEAD_DIM
    layout = tile_pieces(BLOCK, D, OPERAND)
    k += batch * k_batch * 8
    v += batch * v_batch * 8
    positions += batch * positions_batch * 8
    if norms is not None:
        norms += (batch * 2 + 1) * N * 2
    count, width = valid_count(sizes, batch, N, HAS_SIZES)

    inverses = inverse_scales(scale, first_head, lanes, inside, HEAD_DIM, GROUP, HAS_SCALE)
    centres = ()
    matrices = ()
    sums = ()
    for g in tl.static_range(GROUP):
        channels = (first_head + g) * HEAD_DIM + lanes
        middle = centre_of_values(
            v, v_token, means + (batch * 2 + 1) * C, count, width, pitch, channels, inside,
            split == 0, SAMPLES, HAS_SIZES,
        )  # fmt: skip
        centres = centres + (middle,)
        matrices = matrices + (tl.zeros([D, D], tl.float32),)
        sums = sums + (tl.zeros([D, 16], tl.float32),)
    ones = tl.full([BLOCK, 16], 1.0, OPERAND)
    # float16: of the lengths of the rows so far.
    unit = tl.full([], 1e-30, tl.float32)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(count, BLOCK))
    for tile in range(split * tiles_per_split, last):
        tokens, live, pieces = tile_tokens(tile, layout, count, width, pitch, BLOCK, HAS_SIZES)
        us, inverse_norm, length = focus(
            k, k_token, positions, positions_token, inverses, pieces, norms, tokens, live, first_head, eps,
            HEADS, HEAD_DIM, GROUP, HAS_POSITIONS, OPERAND,
        )  # fmt: skip
        lengths = tl.where(live, 1.0 / (length * inverse_norm), 0.0)
        shrink = 1.0
        if OPERAND == tl.float16:
            unit, shrink = grow(unit, lengths, OPERAND)
            lengths /= unit
        # All heads' operands first: they wait for each other once.
        operands = ()
        for g in tl.static_range(GROUP):
            focused = tl.trans((cube(us[g], inverse_norm) * lengths[:, None]).to(OPERAND))
            own = v + (first_head + g) * HEAD_DIM
            values, _ = centred_values(own, v_token, pieces, centres[g], BLOCK, HEAD_DIM, OPERAND)
            operands = operands + ((focused, values),)
        new_matrices = ()
        new_sums = ()
        for g in tl.static_range(GROUP):
            focused, values = operands[g]
            matrix = matrices[g]
            total = sums[g]
            if OPERAND == tl.float16:
                matrix *= shrink
                total *= shrink
            new_matrices = new_matrices + (multiply_add(focused, values, matrix),)
            new_sums = new_sums + (multiply_add(focused, ones, total),)
        matrices = new_matrices
        sums = new_sums

    splits = tl.num_programs(1)
    factor = 1.0 / count
    double: tl.constexpr = 2.0 if OPERAND == tl.float16 else 1.0
    if OPERAND == tl.float16:
        factor *= unit
    for g in tl.static_range(GROUP):
        head = (batch * splits + split) * HEADS + first_head + g
        matrix = matrices[g] * (factor * double)
        store_matrix(kv + head * HEAD_DIM * HEAD_DIM, lanes, lanes, matrix, HEAD_DIM)
        # All 16 columns are the same.
        mean = tl.sum(sums[g], axis=1) * (factor / 16)
        places = (batch * splits + split) * k_mean_stride + (first_head + g) * HEAD_DIM + lanes
        tl.store(k_mean + places, mean, mask=inside)


@kernel
def sum_splits(
    matrix_parts, matrices, vector_parts, vectors, vector_stride, splits,
    C: tl.constexpr, HEAD_DIM: tl.constexpr, SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the splits, see :func:`sum_split_block`. Grid (blocks,)."""
    sum_split_block(
        matrix_parts, matrices, vector_parts, vectors, vector_stride, splits, tl.program_id(0),
        C, HEAD_DIM, SPLIT_BLOCK,
    )  # fmt: skip


@kernel
def attend(
    q, q_batch, q_token, v, v_batch, v_token, scale, norms, means, kv, moved_means, moved_kv,
    weight, bias, out,
    H, W, sizes, rows, eps,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, OPERAND: tl.constexpr,
    HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """``out (B, N, C)``, contiguous: the queries' attention of a region, and, if K > 0, the convolution of v.

    GROUP and ``norms`` as in :func:`reduce_keys`. Grid (B * h / GROUP, regions). ``moved_means (B, 2, C)``
    and ``moved_kv (B, h, d, d)`` are those of another centre of the values.
    """
    batch, first_head = program_heads(HEADS, GROUP)
    lanes = tile_lanes(D, OPERAND)
    inside = lanes < HEAD_DIM
    q += batch * q_batch * 8
    out += batch * H * W * C
    if norms is not None:
        norms += batch * H * W * 4
    pitch = W
    H, W = valid_size(sizes, batch, H, W, HAS_SIZES)

    inverses = inverse_scales(scale, first_head, lanes, inside, HEAD_DIM, GROUP, HAS_SCALE)
    centres = ()
    matrices = ()
    mean_columns = ()
    factors = ()
    for g in tl.static_range(GROUP):
        head = first_head + g
        channels = head * HEAD_DIM + lanes
        mean = tl.load(means + batch * 2 * C + channels, mask=inside, other=0.0)
        middle = tl.load(means + (batch * 2 + 1) * C + channels, mask=inside, other=0.0)
        place = (batch * C + head * HEAD_DIM) * HEAD_DIM
        matrix = load_matrix(kv + place, lanes, lanes, HEAD_DIM)
        # To the mean of the values as the keys weigh them: what is left of the matrix is small, and so is its
        # error as an operand.
        shift = tl.sum(matrix, axis=0) / tl.maximum(tl.sum(mean), 1e-30)
        middle += shift
        matrix -= mean[:, None] * shift[None, :]
        if tl.program_id(1) == 0:
            tl.store(moved_means + batch * 2 * C + channels, mean, mask=inside)
            tl.store(moved_means + (batch * 2 + 1) * C + channels, middle, mask=inside)
            store_matrix(moved_kv + place, lanes, lanes, matrix, HEAD_DIM)
        operand, factor = as_operand(matrix, OPERAND)
        columns, mean_factor = as_columns(mean, OPERAND)
        centres = centres + (middle,)
        matrices = matrices + (operand,)
        mean_columns = mean_columns + (columns,)
        factors = factors + ((factor, mean_factor),)

    region = tl.program_id(1)
    layout = tile_pieces(BLOCK, D, OPERAND)
    first_tile = region_tile(region, layout, H, W, rows, BLOCK, GROUPS, COLUMNS)
    for step in range(0, rows, BLOCK // (GROUPS * COLUMNS)):
        tokens, live, pieces = tile_below(first_tile, step, pitch)
        us, inverse_norm, length = focus(
            q, q_token, q, q_token, inverses, pieces, norms, tokens, live, first_head, eps,
            HEADS, HEAD_DIM, GROUP, False, OPERAND,
        )  # fmt: skip
        # A row's scale cancels between numerator and denominator but for this: eps, divided alike.
        floor = eps * length * inverse_norm * headroom(OPERAND)
        for g in tl.static_range(GROUP):
            cubes = (cube(us[g], inverse_norm) * headroom(OPERAND)).to(OPERAND)
            factor, mean_factor = factors[g]
            total = tl.sum(multiply(cubes, mean_columns[g]), axis=1) * mean_factor
            reciprocal = 1.0 / (total + floor)
            result = multiply(cubes, matrices[g]) * (reciprocal * factor)[:, None]
            result += (total * reciprocal)[:, None] * centres[g][None, :]
            own = out + (first_head + g) * HEAD_DIM
            store_pieces(own, C // 8, pieces, result, HEAD_DIM, OPERAND)
    if K > 0:
        # Other threads of the program read what was stored.
        tl.debug_barrier()
        for g in range(GROUP):
            add_convolution(
                v + batch * v_batch * 8, v_token, weight, bias, out, C, (first_head + g) * HEAD_DIM,
                region, H, W, pitch, rows, HEAD_DIM, D, K, GROUPS, COLUMNS, False, HAS_BIAS,
            )  # fmt: skip


@kernel
def convolve(
    image, image_batch, image_token, weight, bias, out,
    H, W, sizes, rows,
    C: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, D: tl.constexpr,
    GROUPS: tl.constexpr, COLUMNS: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr,
    FLIP: tl.constexpr, HAS_SIZES: tl.constexpr,
):  # fmt: skip
    """Add the convolution of ``image`` to ``out (B, N, C)``, for kernels that leave it out.

    Grid (B * h, regions).
    """
    batch = (tl.program_id(0) // HEADS).to(tl.int64)
    height, width = valid_size(sizes, batch, H, W, HAS_SIZES)
    add_convolution(
        image + batch * image_batch * 8, image_token, weight, bias, out + batch * H * W * C, C,
        (tl.program_id(0) % HEADS) * HEAD_DIM, tl.program_id(1), height, width, W, rows,
        HEAD_DIM, D, K, GROUPS, COLUMNS, FLIP, HAS_BIAS,
    )  # fmt: skip
