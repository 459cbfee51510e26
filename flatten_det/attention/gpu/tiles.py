"""What the kernels share: rows and their focused map, products, the depthwise convolution of a region.

Tiles are ``[tokens, channels]``, one for each head of a row, the channels in the order of :func:`tile_lanes`.
Channels that a tile has beyond the head's are masked by an inverse scale of 0, which makes their focused
entries 0. Tokens beyond the last are read as zeros and are ordinary zero rows from there on, hence finite;
their values and gradients are 0. Maps with padding have their valid part in the top left corner: kernels walk
over that alone (HAS_SIZES), and neither read nor write anything else. Strides are in units of eight elements:
the compiler then knows that 16-byte accesses are aligned, whatever the image size.

Notation: u is a rectified row, n its norm, t = u / n, c = t^3, so that f(u) = n c / ||c||. No power of t
over- or underflows, because its entries are at most 1 and their squares sum to 1.
"""

from functools import partial

import triton
import triton.language as tl

# Sizes and strides are no reason to compile a kernel anew.
kernel = partial(
    triton.jit,
    do_not_specialize=[
        *(
            f"{x}_{y}"
            for x in ("q", "k", "v", "positions", "grad", "image")
            for y in ("batch", "token")
        ),
        *("B", "N", "H", "W", "sizes", "pitch", "rows", "tokens", "size"),
        *("regions", "items", "items_per_split", "tiles_per_split", "splits", "sum_programs"),
        *("k_mean_stride", "vector_stride", "tap_rows", "scale_rows"),
    ],
)


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter, on tensors of the CPU (``TRITON_INTERPRET=1``)."""
    return not isinstance(row_offsets, triton.JITFunction)


@triton.jit
def row_offsets(tokens, stride):
    """Element offsets of tokens, int64: a map of a million tokens passes 2^31."""
    return tokens.to(tl.int64) * stride * 8


@triton.jit
def valid_size(sizes, batch, H, W, HAS_SIZES: tl.constexpr):
    """Height and width of a map without its padding: of ``sizes (B, 2)``, or all of it."""
    if HAS_SIZES:
        H = tl.load(sizes + batch * 2)
        W = tl.load(sizes + batch * 2 + 1)
    return H, W


@triton.jit
def valid_count(sizes, batch, N, HAS_SIZES: tl.constexpr):
    """Number of tokens that are no padding, and the width of their map, which only padded ones have."""
    width = N
    if HAS_SIZES:
        height, width = valid_size(sizes, batch, N, N, HAS_SIZES)
        N = height * width
    return N, width


@triton.jit
def valid_tokens(index, width, pitch, HAS_SIZES: tl.constexpr):
    """The tokens of these indices among those that are no padding; pitch: width of the map with it."""
    if HAS_SIZES:
        index = index // width * pitch + index % width
    return index


@triton.jit
def tile_tokens(tile, pieces, count, width, pitch, BLOCK: tl.constexpr, HAS_SIZES: tl.constexpr):
    """Tokens of a tile's rows, int64; which of them there are; and the pieces for :func:`load_pieces`.

    ``pieces`` are those of :func:`tile_pieces`, ``count`` and ``width`` of :func:`valid_count`.
    """
    row, channel = pieces
    index = tile * BLOCK + tl.arange(0, BLOCK)
    own = tile * BLOCK + row
    tokens = valid_tokens(index, width, pitch, HAS_SIZES).to(tl.int64)
    own_tokens = valid_tokens(own, width, pitch, HAS_SIZES).to(tl.int64)
    return tokens, index < count, (own_tokens, own < count, channel)


@triton.jit
def program_heads(HEADS: tl.constexpr, GROUP: tl.constexpr):
    """Batch entry, int64, and first head of a program of a grid (B * h / GROUP, ...)."""
    groups: tl.constexpr = HEADS // GROUP
    batch = (tl.program_id(0) // groups).to(tl.int64)
    return batch, (tl.program_id(0) % groups) * GROUP


@triton.jit
def load_tile(pointer, rows, channels, live, inside):
    """``[len(rows), len(channels)]`` as stored, zero where a row is not live or a channel not inside."""
    return tl.load(
        pointer + rows[:, None] + channels[None, :], mask=live[:, None] & inside[None, :], other=0.0
    )


@triton.jit
def store_tile(pointer, rows, channels, live, inside, values):
    """Store a tile in the dtype of the pointer."""
    tl.store(
        pointer + rows[:, None] + channels[None, :],
        values.to(pointer.dtype.element_ty),
        mask=live[:, None] & inside[None, :],
    )


@triton.constexpr_function
def piece_size(D):
    """Neighbouring channels of a token that a thread loads and stores at once, in tiles with D columns."""
    return min(8, D // 4)


@triton.constexpr_function
def piece_warps(BLOCK):
    """Warps with rows of their own, 16 at a time, in products of a tile: 4, or fewer if it is small.

    Where a program has more warps, or a card keeps products elsewhere, the order is right but saves less.
    """
    return min(4, BLOCK // 16)


@triton.jit
def tile_lanes(D: tl.constexpr, OPERAND: tl.constexpr):
    """Channel of the head that each column of a tile is.

    In results of 16-bit products a thread has two columns of eight, and the three next to it have the others.
    Here these are neighbours in memory, a piece, for a thread: tiles come from memory into products and back
    without a detour through shared memory, which takes two barriers. Matrices and vectors that meet tiles
    have the same order. Products of float32 are not made that way: their tiles have the channels' own.
    """
    column = tl.arange(0, D)
    if OPERAND == tl.float32:
        return column
    PAIRS: tl.constexpr = piece_size(D) // 2
    pair = column // 8
    return column % 2 + 2 * (pair % PAIRS + PAIRS * (column // 2 % 4 + 4 * (pair // PAIRS)))


@triton.jit
def tile_pieces(BLOCK: tl.constexpr, D: tl.constexpr, OPERAND: tl.constexpr):
    """Row and first channel of a tile's pieces, in the order of the threads that have them in products."""
    WARPS: tl.constexpr = piece_warps(BLOCK)
    piece = tl.arange(0, BLOCK * D // piece_size(D))
    if OPERAND == tl.float32:
        per_row: tl.constexpr = D // piece_size(D)
        return piece // per_row, piece % per_row * piece_size(D)
    # Four threads share a row, a warp has eight rows and those eight below, then come the other warps.
    row = piece // 4 % 8 + piece // (32 * WARPS) % 2 * 8 + piece // 32 % WARPS * 16
    row += piece // (64 * WARPS) % (BLOCK // (16 * WARPS)) * (16 * WARPS)
    return row, (piece % 4 + piece // (4 * BLOCK) * 4) * piece_size(D)


@triton.jit
def piece_places(pieces, stride, D: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Element offsets of pieces ``[pieces, channels]``, and which there are; see :func:`load_pieces`."""
    tokens, live, first = pieces
    lanes = first[:, None] + tl.arange(0, piece_size(D))[None, :]
    return row_offsets(tokens, stride)[:, None] + lanes, live[:, None] & (lanes < HEAD_DIM)


@triton.jit
def load_pieces(
    pointer, stride, pieces,
    BLOCK: tl.constexpr, D: tl.constexpr, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Tile ``[BLOCK, D]`` of a head as stored, zero where there is no token or channel.

    Args:
        pointer: to the head's first channel of the first token.
        stride: from a token to the next one, in units of eight elements.
        pieces: of each of :func:`tile_pieces` the token, whether there is one, and the first channel.
    """
    places, there = piece_places(pieces, stride, D, HEAD_DIM)
    x = tl.load(pointer + places, mask=there, other=0.0)
    if OPERAND != tl.float32:
        SIZE: tl.constexpr = piece_size(D)
        WARPS: tl.constexpr = piece_warps(BLOCK)
        x = tl.reshape(x, [D // (4 * SIZE), BLOCK // (16 * WARPS), 2, WARPS, 8, 4, SIZE // 2, 2])
        x = tl.permute(x, (1, 3, 2, 4, 0, 6, 5, 7))
    return tl.reshape(x, [BLOCK, D])


@triton.jit
def store_pieces(pointer, stride, pieces, x, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr):
    """Store a tile in the dtype of the pointer, where :func:`load_pieces` loads one."""
    BLOCK: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    SIZE: tl.constexpr = piece_size(D)
    x = x.to(pointer.dtype.element_ty)
    if OPERAND != tl.float32:
        WARPS: tl.constexpr = piece_warps(BLOCK)
        x = tl.reshape(x, [BLOCK // (16 * WARPS), WARPS, 2, 8, D // (4 * SIZE), SIZE // 2, 4, 2])
        x = tl.permute(x, (4, 0, 2, 1, 3, 6, 5, 7))
    places, there = piece_places(pieces, stride, D, HEAD_DIM)
    tl.store(pointer + places, tl.reshape(x, [BLOCK * D // SIZE, SIZE]), mask=there)


@triton.jit
def inverse_softplus(scale, channels, inside, HAS_SCALE: tl.constexpr):
    """1 / softplus(scale) per channel, 1 without a scale; 0 for channels that are not inside."""
    inverse = inside.to(tl.float32)
    if HAS_SCALE:
        s = tl.load(scale + channels, mask=inside, other=0.0).to(tl.float32)
        # softplus(s) = max(s, 0) + log(1 + y) with y = exp(-|s|) and log(1 + y) = 2 artanh(z): z is at most
        # 1/3, and the series keeps its digits for small y, where the logarithm of a GPU has none left.
        y = tl.exp(-tl.abs(s))
        z = y / (2.0 + y)
        z2 = z * z
        series = 1.0 / 13 + z2 * (1.0 / 15)
        series = 1.0 / 11 + z2 * series
        series = 1.0 / 9 + z2 * series
        series = 1.0 / 7 + z2 * series
        series = 1.0 / 5 + z2 * series
        series = 1.0 / 3 + z2 * series
        softplus = tl.maximum(s, 0.0) + 2.0 * z * (1.0 + z2 * series)
        inverse *= 1.0 / softplus
    return inverse


@triton.jit
def inverse_scales(
    scale, first_head, lanes, inside,
    HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, HAS_SCALE: tl.constexpr,
):  # fmt: skip
    """:func:`inverse_softplus` of GROUP heads, a tuple."""
    inverses = ()
    for g in tl.static_range(GROUP):
        channels = (first_head + g) * HEAD_DIM + lanes
        inverses = inverses + (inverse_softplus(scale, channels, inside, HAS_SCALE),)
    return inverses


@triton.jit
def rectify(
    pointer, stride, positions, positions_stride, inverse, pieces, eps,
    BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, HAS_POSITIONS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """u of one head: rows of queries, or of keys with their positions added.

    Args:
        pointer, positions, pieces: see :func:`load_pieces`.
        inverse: of :func:`inverse_softplus`.
    """
    D: tl.constexpr = inverse.shape[0]
    x = load_pieces(pointer, stride, pieces, BLOCK, D, HEAD_DIM, OPERAND).to(tl.float32)
    if HAS_POSITIONS:
        added = load_pieces(positions, positions_stride, pieces, BLOCK, D, HEAD_DIM, OPERAND)
        x += added.to(tl.float32)
    # NaN stays NaN, as in the reference.
    positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return (positive + eps) * inverse[None, :]


@triton.jit
def load_norms(norms, tokens, live):
    """1 / n and ||c|| of rows, from ``norms (N, 2)`` of a batch entry."""
    inverse_norm = tl.load(norms + tokens * 2, mask=live, other=1.0)
    return inverse_norm, tl.load(norms + tokens * 2 + 1, mask=live, other=1.0)


@triton.jit
def store_columns(pointer, tokens, live, values, wanted):
    """The wanted columns of ``values (tokens, columns)`` into ``(N, columns)``.

    Where every thread has an element, those of a row stay in the warp that has the row in products: two
    columns at least are stored without shared memory, a vector is not.
    """
    columns: tl.constexpr = values.shape[1]
    places = tokens[:, None] * columns + tl.arange(0, columns)[None, :]
    tl.store(pointer + places, values, mask=live[:, None] & wanted)


@triton.jit
def focus(
    pointer, stride, positions, positions_stride, inverses, pieces, norms, tokens, live, first_head, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUP: tl.constexpr, HAS_POSITIONS: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """u for each head of the group, see :func:`rectify`; and the rows' norms.

    Args:
        inverses: of :func:`inverse_scales`.
        norms: of :func:`load_norms`; written if GROUP is all heads, unless None, else read.
    """
    TINY: tl.constexpr = 1.1754943508222875e-38
    us = ()
    squares = tl.zeros(live.shape, tl.float32)
    for g in tl.static_range(GROUP):
        first = (first_head + g) * HEAD_DIM
        u = rectify(
            pointer + first, stride, positions + first, positions_stride, inverses[g], pieces, eps,
            live.shape[0], HEAD_DIM, HAS_POSITIONS, OPERAND,
        )  # fmt: skip
        squares += tl.sum(u * u, axis=1)
        us = us + (u,)
    if GROUP == HEADS:
        inverse_norm = tl.rsqrt(tl.maximum(squares, TINY, propagate_nan=tl.PropagateNan.ALL))
        sixths = tl.zeros(live.shape, tl.float32)
        for g in tl.static_range(GROUP):
            c = cube(us[g], inverse_norm)
            sixths += tl.sum(c * c, axis=1)
        length = tl.sqrt(tl.maximum(sixths, TINY, propagate_nan=tl.PropagateNan.ALL))
        if norms is not None:
            columns = tl.arange(0, 2)[None, :]
            store_columns(norms, tokens, live, tl.join(inverse_norm, length), columns >= 0)
    else:
        inverse_norm, length = load_norms(norms, tokens, live)
    return us, inverse_norm, length


@triton.jit
def is_positive(u, inverse, eps):
    """Where an entry was above zero before it was rectified; one that was not has its eps and no more."""
    # No product of inverse and eps, which would be a row of registers more.
    least = tl.full(u.shape, -1.000001, tl.float32) * eps
    return tl.fma(least, tl.broadcast_to(inverse[None, :], u.shape), u) > 0.0


@triton.jit
def cube(u, inverse_norm):
    """c of rows u."""
    t = u * inverse_norm[:, None]
    return t * t * t


@triton.jit
def multiply(a, b):
    """Matrix product, accumulated in float32; products of float32 are exact ones."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def multiply_add(a, b, total):
    """``total`` plus the matrix product."""
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def load_matrix(pointer, rows, columns, HEAD_DIM: tl.constexpr):
    """Channels ``rows`` and ``columns`` of a head's ``HEAD_DIM x HEAD_DIM`` float32, zero outside."""
    return tl.load(
        pointer + rows[:, None] * HEAD_DIM + columns[None, :],
        mask=(rows < HEAD_DIM)[:, None] & (columns < HEAD_DIM)[None, :],
        other=0.0,
    )


@triton.jit
def store_matrix(pointer, rows, columns, values, HEAD_DIM: tl.constexpr):
    """Store what :func:`load_matrix` loads."""
    tl.store(
        pointer + rows[:, None] * HEAD_DIM + columns[None, :],
        values,
        mask=(rows < HEAD_DIM)[:, None] & (columns < HEAD_DIM)[None, :],
    )


@triton.jit
def headroom(OPERAND: tl.constexpr):
    """What the largest operand is to be: float16 has nine decades, which are used from the top.

    Factors of rows, and of matrices, are taken out of operands and come back in float32.
    """
    return 16384.0 if OPERAND == tl.float16 else 1.0


@triton.jit
def as_operand(x, OPERAND: tl.constexpr):
    """x in the dtype of products, float16 up to :func:`headroom`; and what to multiply the products with."""
    factor = 1.0
    if OPERAND == tl.float16:
        factor = tl.maximum(tl.max(tl.abs(x)), 1e-30) / headroom(OPERAND)
        x = x * (1.0 / factor)
    return x.to(OPERAND), factor


@triton.jit
def as_operands(x, OPERAND: tl.constexpr):
    """Two operands whose sum has twice the digits, and the factor as for :func:`as_operand`."""
    high, factor = as_operand(x, OPERAND)
    low = (x * (1.0 / factor) - high.to(tl.float32)).to(OPERAND)
    return high, low, factor


@triton.jit
def centred_values(
    v, stride, pieces, centre, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, OPERAND: tl.constexpr
):
    """v - centre as an operand, and what its products are to be multiplied with; see :func:`load_pieces`.

    In float16 half of the difference of two values is always in range.
    """
    double: tl.constexpr = 2.0 if OPERAND == tl.float16 else 1.0
    D: tl.constexpr = centre.shape[0]
    values = load_pieces(v, stride, pieces, BLOCK, D, HEAD_DIM, OPERAND).to(tl.float32)
    return ((values - centre[None, :]) * (1.0 / double)).to(OPERAND), double


@triton.jit
def as_columns(x, OPERAND: tl.constexpr):
    """``[len(x), 16]`` whose sum over the columns is x, to twice the digits of operands, and their factor."""
    column = tl.arange(0, 16)[None, :]
    high, low, factor = as_operands(x, OPERAND)
    rest = tl.zeros([x.shape[0], 16], OPERAND)
    columns = tl.where(column == 0, high[:, None], tl.where(column == 1, low[:, None], rest))
    return columns, factor


@triton.jit
def add_column_sums(total, x, OPERAND: tl.constexpr):
    """``total [D, 16]``, whose own columns are one sum in 16 parts, plus the sums of the columns of x.

    A product with ones: warps do not wait for each other at every tile, and no tile of sums stays in
    registers.
    """
    if OPERAND == tl.float32:
        total += (tl.sum(x, axis=0) * (1.0 / 16))[:, None]
    else:
        ones = tl.full([x.shape[0], 16], 1.0 / 16, OPERAND)
        operand, factor = as_operand(x, OPERAND)
        total += multiply(tl.trans(operand), ones) * factor
    return total


@triton.jit
def grow(unit, values, OPERAND: tl.constexpr):
    """The unit in which the largest of ``values`` so far is :func:`headroom`, and the last one in it.

    For sums of products whose rows have factors beyond the range of float16.
    """
    larger = tl.maximum(unit, tl.max(values) / headroom(OPERAND))
    return larger, unit / larger


@triton.jit
def sum_split_block(
    matrix_parts, matrices, vector_parts, vectors, vector_stride, splits, block,
    C: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of two sums over the splits, always in the same order.

    ``matrix_parts (B, splits, h, d, d)`` and ``vector_parts (B, splits, C)``; vectors of the result are
    ``vector_stride`` elements apart. Of each batch entry the matrices' blocks are the first.
    """
    BLOCK_SPLITS: tl.constexpr = 32
    matrix_blocks: tl.constexpr = (C * HEAD_DIM + BLOCK - 1) // BLOCK
    blocks: tl.constexpr = matrix_blocks + (C + BLOCK - 1) // BLOCK
    batch = (block // blocks).to(tl.int64)
    block = block % blocks
    if block < matrix_blocks:
        parts = matrix_parts
        total = matrices + batch * C * HEAD_DIM
        size = C * HEAD_DIM
    else:
        parts = vector_parts
        total = vectors + batch * vector_stride
        size = C
        block -= matrix_blocks
    index = block * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, splits, BLOCK_SPLITS):
        split = start + tl.arange(0, BLOCK_SPLITS)
        rows = parts + (batch * splits + split)[:, None] * size
        mask = (split < splits)[:, None] & (index < size)[None, :]
        sums += tl.sum(tl.load(rows + index[None, :], mask=mask, other=0.0), axis=0)
    tl.store(total + index, sums, mask=index < size)


@triton.jit
def region_groups(tile, first, W, rows, GROUPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Top row and left column of groups of a region.

    The map is cut into bands of ``rows`` rows. A group is COLUMNS columns of a band; a region is GROUPS
    groups that follow each other, going on in the next band at the right edge, so that narrow maps and
    windows fill it too.

    Args:
        tile: of the region.
        first: indices of groups in the region.
    """
    per_band = tl.cdiv(W, COLUMNS)
    group = tile * GROUPS + first
    return (group // per_band) * rows, (group % per_band) * COLUMNS


@triton.jit
def region_tokens(region, index, H, W, rows, GROUPS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where tokens of a region's first tile are: row, column, and the row where their band ends.

    The next tile is ``BLOCK // (GROUPS * COLUMNS)`` rows below. Columns that do not exist end at once.
    """
    top, left = region_groups(region, index // COLUMNS % GROUPS, W, rows, GROUPS, COLUMNS)
    x = left + index % COLUMNS
    bottom = tl.where(x < W, tl.minimum(top + rows, H), 0)
    return top + index // (GROUPS * COLUMNS), x, bottom


@triton.jit
def region_tile(
    region, pieces, H, W, rows, BLOCK: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr
):
    """:func:`region_tokens` of a tile's rows and of its :func:`tile_pieces`, and the pieces' channels."""
    row, channel = pieces
    of_rows = region_tokens(region, tl.arange(0, BLOCK), H, W, rows, GROUPS, COLUMNS)
    return of_rows, region_tokens(region, row, H, W, rows, GROUPS, COLUMNS), channel


@triton.jit
def tile_below(first, step, pitch):
    """As :func:`tile_tokens`, of the tile so many rows below :func:`region_tile`."""
    y, x, bottom = first[0]
    own_y, own_x, own_bottom = first[1]
    tokens = ((y + step) * pitch + x).to(tl.int64)
    own_tokens = ((own_y + step) * pitch + own_x).to(tl.int64)
    return tokens, y + step < bottom, (own_tokens, own_y + step < own_bottom, first[2])


@triton.jit
def add_convolution(
    image, stride, weight, bias, out, out_stride, channel, tile, H, W, pitch,
    rows,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr, FLIP: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Add the K x K convolution of one head, with zero padding, to a region of ``out``, in float32.

    Walks down the rows: a value is read once for every COLUMNS + K - 1 columns and goes into the K * COLUMNS
    outputs that it reaches, which stay in registers, as the K * K taps do.

    Args:
        image, out: of this batch entry, tokens ``stride * 8`` and ``out_stride`` elements apart.
        weight: ``(d, 1, K, K)``.
        bias: ``(d,)``; read if HAS_BIAS.
        channel: first channel of the head.
        pitch: tokens from a row to the next one, which may be padding.
        FLIP: turn the kernel by 180 degrees, which gives the gradient of the convolution.
    """
    lanes = tl.arange(0, D)
    inside = lanes < HEAD_DIM
    taps = ()
    for tap in tl.static_range(K * K):
        source = K * K - 1 - tap if FLIP else tap
        taps = taps + (
            tl.load(weight + lanes * (K * K) + source, mask=inside, other=0.0).to(tl.float32),
        )
    start = tl.zeros([D], tl.float32)
    if HAS_BIAS:
        start = tl.load(bias + lanes, mask=inside, other=0.0).to(tl.float32)
    top, left = region_groups(tile, tl.arange(0, GROUPS), W, rows, GROUPS, COLUMNS)
    # Bands that do not exist begin below the map.
    bottom = tl.minimum(top + rows, H)
    channels = channel + lanes
    sums = ()
    for _ in tl.static_range(K * COLUMNS):
        sums = sums + (tl.zeros([GROUPS, D], tl.float32),)
    for line in range(rows + K - 1):
        # The oldest row of outputs was stored at the last line; a new one begins.
        y = top + line - K // 2
        newest = y + K // 2
        moved = ()
        for j in tl.static_range(COLUMNS):
            for i in tl.static_range(K - 1):
                moved = moved + (sums[j * K + i + 1],)
            live = (newest < bottom) & (left + j < W)
            tokens = (newest * pitch + left + j).to(tl.int64) * out_stride
            first = load_tile(out, tokens, channels, live, inside).to(tl.float32)
            moved = moved + (first + start[None, :],)
        sums = moved
        row_exists = (y >= 0) & (y < H)
        for s in tl.static_range(COLUMNS + K - 1):
            x = left + s - K // 2
            live = row_exists & (x >= 0) & (x < W)
            value = load_tile(image, row_offsets(y * pitch + x, stride), channels, live, inside)
            value = value.to(tl.float32)
            grown = ()
            for j in tl.static_range(COLUMNS):
                for i in tl.static_range(K):
                    if s - j >= 0 and s - j < K:
                        factor = taps[(K - 1 - i) * K + s - j]
                        grown = grown + (sums[j * K + i] + value * factor[None, :],)
                    else:
                        grown = grown + (sums[j * K + i],)
            sums = grown
        oldest = y - K // 2
        for j in tl.static_range(COLUMNS):
            live = (oldest >= top) & (oldest < H) & (left + j < W)
            tokens = (oldest * pitch + left + j).to(tl.int64) * out_stride
            store_tile(out, tokens, channels, live, inside, sums[j * K])
