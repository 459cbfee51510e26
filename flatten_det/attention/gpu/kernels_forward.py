"""Forward kernels: preparation, keys and values reduced per head, sum of the splits, queries.

Notation as in :mod:`.tiles`: u is a rectified row, t = u / max(u).
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


@triton.jit(do_not_specialize=["B", "v_batch", "v_token", "N"])
def prepare(
    v,
    v_batch,
    v_token,
    centre,
    scale,
    inverse_scale,
    weight,
    taps,
    B,
    N,
    C: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    SAMPLES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What every tile of the other kernels needs: a centre of the values, and the parameters' forms.

    ``centre (B, C)`` is the mean of v over SAMPLES tokens spread over the map, exactly v where all agree;
    ``inverse_scale (C,)`` = 1 / softplus(scale); ``taps (K*K, d)`` from ``weight (d, 1, K, K)``.
    Grid (B + 1, blocks); the last row of programs is for the parameters.
    """
    lanes = tl.arange(0, BLOCK)
    block = tl.program_id(1)
    batch = tl.program_id(0)
    if batch < B:
        channels = block * BLOCK + lanes
        inside = channels < C
        tokens = (tl.arange(0, SAMPLES) * N) // SAMPLES
        v += batch.to(tl.int64) * v_batch * 8
        live = tokens < N
        first = tl.load(v + channels, mask=inside, other=0.0).to(tl.float32)
        values = load_tile(v, row_offsets(tokens, v_token), channels, live, inside)
        mean = first + tl.sum(values - first[None, :], axis=0) / SAMPLES
        if PRECISION == "tf32":
            # In steps of the largest value's last tf32 digit, so that rounding v - centre to tf32 does not
            # move values of a kind all the same way.
            bits = tl.max(tl.abs(values), axis=0).to(tl.int32, bitcast=True)
            binade = (bits & 0x7F800000).to(tl.float32, bitcast=True)
            shift = binade * (1.5 * 2**13)
            mean = (mean + shift) - shift
        tl.store(centre + batch.to(tl.int64) * C + channels, mean, mask=inside)
    else:
        for start in range(block * BLOCK, max(C, K * K * HEAD_DIM), tl.num_programs(1) * BLOCK):
            index = start + lanes
            if HAS_SCALE:
                # float64, because the float32 logarithm of a GPU has few digits left near 1.
                s = tl.load(scale + index, mask=index < C, other=0.0).to(tl.float64)
                y = tl.exp(-tl.abs(s))
                w = 1.0 + y
                # log1p: the rounding of w cancels between log(w) and w - 1.
                log1p = tl.where(w == 1.0, y, tl.log(w) * (y / tl.where(w == 1.0, 1.0, w - 1.0)))
                softplus = tl.where(s < 0.0, 0.0, s) + log1p
                tl.store(inverse_scale + index, (1.0 / softplus).to(tl.float32), mask=index < C)
            if K > 0:
                inside = index < K * K * HEAD_DIM
                source = (index % HEAD_DIM) * (K * K) + index // HEAD_DIM
                tap = tl.load(weight + source, mask=inside, other=0.0).to(tl.float32)
                tl.store(taps + index, tap, mask=inside)


@triton.jit(do_not_specialize=["k_batch", "k_token", "positions_batch", "positions_token", "N"])
def key_norms(
    k,
    k_batch,
    k_token,
    positions,
    positions_batch,
    positions_token,
    inverse_scale,
    norms,
    N,
    eps,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    """What :func:`row_norms` gives, ``norms (B, 3, N)`` float32, for programs that see one head only.

    Grid (B, tiles).
    """
    batch = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = tokens < N
    largest, squares, sixths = row_norms(
        k + batch * k_batch * 8,
        row_offsets(tokens, k_token),
        positions + batch * positions_batch * 8,
        row_offsets(tokens, positions_token),
        inverse_scale,
        live,
        eps,
        C,
        CHUNK,
        HAS_POSITIONS,
        HAS_SCALE,
    )
    norms += batch * 3 * N
    tl.store(norms + tokens, largest, mask=live)
    tl.store(norms + N + tokens, squares, mask=live)
    tl.store(norms + 2 * N + tokens, sixths, mask=live)


@triton.jit(
    do_not_specialize=[
        "k_batch",
        "k_token",
        "v_batch",
        "v_token",
        "positions_batch",
        "positions_token",
        "N",
        "tiles_per_split",
    ]
)
def reduce_keys(
    k,
    k_batch,
    k_token,
    v,
    v_batch,
    v_token,
    positions,
    positions_batch,
    positions_token,
    inverse_scale,
    norms,
    centre,
    kv,
    k_mean,
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
    HAS_POSITIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Parts of ``phi(k)^T (v - centre) / N`` and ``sum phi(k) / N`` of one split, for GROUP heads.

    GROUP is all heads, or 1 with ``norms`` of :func:`key_norms`. Grid (B * h / GROUP, splits).
    ``kv (B, splits, h, d, d)``, ``k_mean (B, splits, h, d)``, float32.
    """
    groups: tl.constexpr = HEADS // GROUP
    batch = (tl.program_id(0) // groups).to(tl.int64)
    first_head = (tl.program_id(0) % groups) * GROUP
    split = tl.program_id(1)
    lanes = tl.arange(0, D)
    k += batch * k_batch * 8
    v += batch * v_batch * 8
    positions += batch * positions_batch * 8

    inside = lanes < HEAD_DIM
    centres = ()
    matrices = ()
    sums = ()
    for g in tl.static_range(GROUP):
        channels = (first_head + g) * HEAD_DIM + lanes
        centres = centres + (tl.load(centre + batch * C + channels, mask=inside, other=0.0),)
        matrices = matrices + (tl.zeros([D, D], tl.float32),)
        sums = sums + (tl.zeros([D], tl.float32),)
    last = tl.minimum((split + 1) * tiles_per_split, tl.cdiv(N, BLOCK))
    for tile in range(split * tiles_per_split, last):
        tokens = tile * BLOCK + tl.arange(0, BLOCK)
        live = tokens < N
        k_rows = row_offsets(tokens, k_token)
        v_rows = row_offsets(tokens, v_token)
        position_rows = row_offsets(tokens, positions_token)
        if GROUP == HEADS:
            largest, squares, sixths = row_norms(
                k, k_rows, positions, position_rows, inverse_scale, live, eps, C, CHUNK,
                HAS_POSITIONS, HAS_SCALE,
            )  # fmt: skip
        else:
            largest, squares, sixths = load_norms(norms + batch * 3 * N, tokens, N, live)
        shrink = 1.0 / largest
        # Dividing by N here rather than at the end keeps the sums in range.
        grow = tl.where(live, largest * tl.sqrt(squares / sixths) / N, 0.0)
        new_matrices = ()
        new_sums = ()
        for g in tl.static_range(GROUP):
            channels = (first_head + g) * HEAD_DIM + lanes
            inverse = load_inverse_scale(inverse_scale, channels, inside, HAS_SCALE)
            x = load_keys(
                k, k_rows, positions, position_rows, channels, live, inside, HAS_POSITIONS
            )
            t = rectify(x, inverse, eps) * shrink[:, None]
            focused = t * t * t * grow[:, None]
            values = load_tile(v, v_rows, channels, live, inside) - centres[g][None, :]
            new_matrices = new_matrices + (
                matrices[g] + multiply(tl.trans(focused), values, PRECISION),
            )
            new_sums = new_sums + (sums[g] + tl.sum(focused, axis=0),)
        matrices = new_matrices
        sums = new_sums

    splits = tl.num_programs(1)
    for g in tl.static_range(GROUP):
        head = (batch * splits + split) * HEADS + first_head + g
        tl.store(
            kv + head * HEAD_DIM * HEAD_DIM + lanes[:, None] * HEAD_DIM + lanes[None, :],
            matrices[g],
            mask=inside[:, None] & inside[None, :],
        )
        tl.store(k_mean + head * HEAD_DIM + lanes, sums[g], mask=inside)


@triton.jit(do_not_specialize=["splits"])
def sum_splits(
    matrix_parts,
    matrices,
    vector_parts,
    vectors,
    splits,
    MATRIX_SIZE: tl.constexpr,
    VECTOR_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``(B, splits, size)`` -> ``(B, size)`` for two tensors at once, always in the same order.

    Grid (B, blocks of the matrices + blocks of the vectors).
    """
    batch = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    matrix_blocks = tl.cdiv(MATRIX_SIZE, BLOCK)
    if block < matrix_blocks:
        parts = matrix_parts
        total = matrices
        size = MATRIX_SIZE
    else:
        parts = vector_parts
        total = vectors
        size = VECTOR_SIZE
        block -= matrix_blocks
    index = block * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        rows = parts + (batch * splits + split)[:, None] * size
        mask = (split < splits)[:, None] & (index < size)[None, :]
        sums += tl.sum(tl.load(rows + index[None, :], mask=mask, other=0.0), axis=0)
    tl.store(total + batch * size + index, sums, mask=index < size)


@triton.jit(
    do_not_specialize=["q_batch", "q_token", "v_batch", "v_token", "H", "W", "heads_per_program"]
)
def attend(
    q,
    q_batch,
    q_token,
    v,
    v_batch,
    v_token,
    inverse_scale,
    centre,
    kv,
    k_mean,
    taps,
    bias,
    out,
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
    HAS_BIAS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``out (B, N, C)``, contiguous: the queries' attention plus, if K > 0, the convolution of v.

    Grid (B * ceil(h / heads_per_program), band tiles).
    """
    groups = tl.cdiv(HEADS, heads_per_program)
    batch = (tl.program_id(0) // groups).to(tl.int64)
    first_head = (tl.program_id(0) % groups) * heads_per_program
    top, column, live = band_tile(tl.program_id(1), H, W, BLOCK, ROWS)
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    q += batch * q_batch * 8
    v += batch * v_batch * 8
    out += batch * H * W * C

    shrinks = ()
    floors = ()
    for r in tl.static_range(ROWS):
        rows = row_offsets((top + r) * W + column, q_token)
        exists = live & (top + r < H)
        largest, squares, sixths = row_norms(
            q, rows, q, rows, inverse_scale, exists, eps, C, CHUNK, False, HAS_SCALE
        )
        shrinks = shrinks + (1.0 / largest,)
        # A row's scale cancels between numerator and denominator but for this: eps, divided alike.
        floors = floors + (eps * tl.sqrt(sixths / squares) / largest,)

    for head in range(first_head, tl.minimum(first_head + heads_per_program, HEADS)):
        channel = head * HEAD_DIM
        convolved = ()
        if K > 0:
            convolved = depthwise_rows(
                v, v_token, taps, channel, lanes, inside, top, column, live, H, W,
                HEAD_DIM, K, ROWS, False,
            )  # fmt: skip
        inverse = load_inverse_scale(inverse_scale, channel + lanes, inside, HAS_SCALE)
        matrix = load_matrix(
            kv + (batch * HEADS + head) * HEAD_DIM * HEAD_DIM, lanes, inside, HEAD_DIM
        )
        mean = tl.load(k_mean + (batch * HEADS + head) * HEAD_DIM + lanes, mask=inside, other=0.0)
        middle = tl.load(centre + batch * C + channel + lanes, mask=inside, other=0.0)
        for r in tl.static_range(ROWS):
            tokens = (top + r) * W + column
            exists = live & (top + r < H)
            x = load_tile(q, row_offsets(tokens, q_token), channel + lanes, exists, inside)
            t = rectify(x, inverse, eps) * shrinks[r][:, None]
            cubes = t * t * t
            total = tl.sum(cubes * mean[None, :], axis=1)
            reciprocal = 1.0 / (total + floors[r])
            result = multiply(cubes, matrix, PRECISION) * reciprocal[:, None]
            result += (total * reciprocal)[:, None] * middle[None, :]
            if K > 0:
                result += convolved[r]
            if HAS_BIAS:
                result += tl.load(bias + lanes, mask=inside, other=0.0).to(tl.float32)[None, :]
            rows = tokens.to(tl.int64) * C
            store_tile(out, rows, channel + lanes, exists, inside, result)
