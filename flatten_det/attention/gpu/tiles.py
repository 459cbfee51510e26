"""What the kernels share: reading rows, their norms, the depthwise convolution of a few rows.

Tiles are ``[tokens, channels]``. Channels that a block has beyond the head's or the row's are masked by an
inverse scale of 0, which makes their focused entries 0. Tokens beyond the last are read as zeros and are
ordinary zero rows from there on, hence finite; their values and gradients are 0. Strides are in units of
eight elements: the compiler then knows that 16-byte accesses are aligned, whatever the image size.
"""

import triton
import triton.language as tl


@triton.jit
def row_offsets(tokens, stride):
    """Element offsets of tokens, int64: a map of a million tokens passes 2^31."""
    return tokens.to(tl.int64) * stride * 8


@triton.jit
def load_tile(pointer, rows, channels, live, inside):
    """``[len(rows), len(channels)]`` in float32, zero where a row is not live or a channel not inside."""
    return tl.load(
        pointer + rows[:, None] + channels[None, :], mask=live[:, None] & inside[None, :], other=0.0
    ).to(tl.float32)


@triton.jit
def load_keys(
    pointer, rows, positions, position_rows, channels, live, inside, HAS_POSITIONS: tl.constexpr
):
    """Rows of queries, or of keys with their positions added."""
    x = load_tile(pointer, rows, channels, live, inside)
    if HAS_POSITIONS:
        x += load_tile(positions, position_rows, channels, live, inside)
    return x


@triton.jit
def load_inverse_scale(inverse_scale, channels, inside, HAS_SCALE: tl.constexpr):
    """1 / softplus(scale) per channel, 0 for channels that are not inside."""
    if HAS_SCALE:
        inverse = tl.load(inverse_scale + channels, mask=inside, other=0.0)
    else:
        inverse = inside.to(tl.float32)
    return inverse


@triton.jit
def rectify(x, inverse, eps):
    """(ReLU(x) + eps) / softplus(scale); NaN stays NaN, as in the reference."""
    positive = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return positive * inverse[None, :] + (eps * inverse)[None, :]


@triton.jit
def row_norms(
    pointer,
    rows,
    positions,
    position_rows,
    inverse_scale,
    live,
    eps,
    C: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_POSITIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
):
    """Per row, with u the rectified row and t = u / max(u): max(u), sum of t^2, sum of t^6.

    With entries of at most 1, no sum over- or underflows. The largest entry so far rescales the sums,
    as in an online softmax, so that the row is read once.
    """
    TINY: tl.constexpr = 1.1754943508222875e-38
    largest = tl.full(rows.shape, TINY, tl.float32)
    squares = tl.zeros(rows.shape, tl.float32)
    sixths = tl.zeros(rows.shape, tl.float32)
    for start in range(0, C, CHUNK):
        channels = start + tl.arange(0, CHUNK)
        inside = channels < C
        x = load_keys(
            pointer, rows, positions, position_rows, channels, live, inside, HAS_POSITIONS
        )
        u = rectify(x, load_inverse_scale(inverse_scale, channels, inside, HAS_SCALE), eps)
        larger = tl.maximum(largest, tl.max(u, axis=1))
        shrink = largest / larger
        shrink *= shrink
        t = u * (1.0 / larger)[:, None]
        t2 = t * t
        squares = squares * shrink + tl.sum(t2, axis=1)
        sixths = sixths * (shrink * shrink * shrink) + tl.sum(t2 * t2 * t2, axis=1)
        largest = larger
    return largest, tl.maximum(squares, TINY), tl.maximum(sixths, TINY)


@triton.jit
def load_norms(norms, tokens, N, live):
    """Norms of rows as :func:`row_norms` returns them, from ``(3, N)``."""
    largest = tl.load(norms + tokens, mask=live, other=1.0)
    squares = tl.load(norms + N + tokens, mask=live, other=1.0)
    sixths = tl.load(norms + 2 * N + tokens, mask=live, other=1.0)
    return largest, squares, sixths


@triton.jit
def band_tile(tile, H, W, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Columns of ROWS tokens one below the other: top row, column, and which columns exist.

    The map is cut into bands of ROWS rows. A tile takes BLOCK consecutive columns, going on in the next
    band at the right edge, so that narrow maps and windows fill it too.
    """
    index = tile * BLOCK + tl.arange(0, BLOCK)
    top = (index // W) * ROWS
    return top, index % W, top < H


@triton.jit
def depthwise_rows(
    pointer,
    stride,
    taps,
    channel,
    lanes,
    inside,
    top,
    column,
    live,
    H,
    W,
    HEAD_DIM: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    FLIP: tl.constexpr,
):
    """K x K convolution with zero padding for one head of a band tile, in float32.

    Each value is read once per column of the kernel and serves all ROWS outputs that it reaches.

    Args:
        pointer: image of this batch entry, tokens ``stride * 8`` elements apart.
        taps: ``(K*K, HEAD_DIM)`` float32.
        channel: first channel of the head.
        lanes: ``arange``, of which those ``inside`` belong to the head.
        FLIP: turn the kernel by 180 degrees, which gives the gradient of the convolution.

    Returns:
        ROWS tiles.
    """
    sums = ()
    for _r in tl.static_range(ROWS):
        sums = sums + (tl.zeros([column.shape[0], lanes.shape[0]], tl.float32),)
    for tap_x in range(K):
        x = column + tap_x - K // 2
        across = live & (x >= 0) & (x < W)
        kernel = ()
        for tap_y in tl.static_range(K):
            tap = tap_y * K + tap_x
            if FLIP:
                tap = K * K - 1 - tap
            kernel = kernel + (tl.load(taps + tap * HEAD_DIM + lanes, mask=inside, other=0.0),)
        for row in tl.static_range(ROWS + K - 1):
            y = top + row - K // 2
            value = load_tile(
                pointer,
                row_offsets(y * W + x, stride),
                channel + lanes,
                across & (y >= 0) & (y < H),
                inside,
            )
            grown = ()
            for r in tl.static_range(ROWS):
                if row - r >= 0 and row - r < K:
                    grown = grown + (sums[r] + value * kernel[row - r][None, :],)
                else:
                    grown = grown + (sums[r],)
            sums = grown
    return sums


@triton.jit
def nearest_tf32(x):
    """x with the ten bits of mantissa that the matrix units look at, rounded.

    Left alone they cut, which makes all factors a little smaller: an error that sums over many tokens keep,
    while what distinguishes the tokens averages out.
    """
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    # The carry can turn NaN into a number; 0 * NaN is NaN.
    return rounded + 0.0 * x


@triton.jit
def multiply(a, b, PRECISION: tl.constexpr):
    """Matrix product, accumulated in float32."""
    if PRECISION == "tf32":
        a = nearest_tf32(a)
        b = nearest_tf32(b)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def load_matrix(pointer, lanes, inside, HEAD_DIM: tl.constexpr):
    """``[D, D]`` of a head's ``HEAD_DIM x HEAD_DIM`` float32, zero outside."""
    return tl.load(
        pointer + lanes[:, None] * HEAD_DIM + lanes[None, :],
        mask=inside[:, None] & inside[None, :],
        other=0.0,
    )


@triton.jit
def store_tile(pointer, rows, channels, live, inside, values):
    """Store a tile in the dtype of the pointer."""
    tl.store(
        pointer + rows[:, None] + channels[None, :],
        values.to(pointer.dtype.element_ty),
        mask=live[:, None] & inside[None, :],
    )
