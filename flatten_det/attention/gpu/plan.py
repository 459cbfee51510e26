"""Block sizes per shape: a small table, the same for all image sizes of a model."""

from dataclasses import dataclass
from functools import cache

import torch

LONGEST_BUCKET = 256


@dataclass(frozen=True)
class Plan:
    """Compile-time constants of the kernels. Nothing here depends on the image beyond its bucket.

    Attributes:
        samples: tokens whose mean is the centre of the values (power of two).
        group: heads per program of the kernels that walk over the tokens, all or 1; each keeps a d x d sum
            in registers. With 1, what the heads of a row share is computed by a kernel of its own.
        block, backward_block: tokens per tile there (powers of two >= 16).
        columns: columns per band tile of the kernels with the convolution (power of two >= 16).
        rows, backward_rows: rows per band tile: each value read serves them all.
        chunk: channels at a time when a row's norms are taken (power of two).
        warps, band_warps: per program of the two sorts of kernels.
        stages: of the software pipeline of the kernels that walk.
        precision: of ``tl.dot``. ``tf32`` has the digits of float16 and the range of float32; float32
            inputs need ``ieee`` (or ``tf32x3``, which nobody has timed).
        fused_convolution: add the depthwise convolution in the kernel that attends; False: apart, by
            torch, for comparison.
    """

    samples: int
    group: int
    block: int
    backward_block: int
    columns: int
    rows: int
    backward_rows: int
    chunk: int
    warps: int
    band_warps: int
    stages: int
    precision: str
    fused_convolution: bool = True


def bucket(tokens: int) -> int:
    """Tokens rounded up to a power of two, all maps of 256 tokens and more being one bucket."""
    return min(max(16, next_power_of_two(tokens)), LONGEST_BUCKET)


def next_power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << max(number - 1, 0).bit_length()


def head_block(head_dim: int) -> int:
    """Channels of a head's tile: a power of two that the matrix units take."""
    return max(16, next_power_of_two(head_dim))


@cache
def default_plan(dim: int, num_heads: int, dtype: torch.dtype, tokens_bucket: int) -> Plan:
    """The plan of a layer, from register counts: see :mod:`flatten_det.attention.gpu`.

    Args:
        dim: channels C.
        num_heads: h.
        dtype: the widest of q, k and v.
        tokens_bucket: of :func:`bucket`.
    """
    width = head_block(dim // num_heads)
    exact = dtype == torch.float32
    group = num_heads if num_heads <= 3 and num_heads * width * width <= 8192 else 1
    block = min(32 if exact else 64, tokens_bucket)
    chunks = (width,) if num_heads == 1 else (128, 64, 32, 16)
    return Plan(
        samples=tokens_bucket,
        group=group,
        block=block,
        backward_block=min(block, 32) if group > 1 and width > 32 else block,
        columns=min(32, max(16, tokens_bucket // 4)),
        rows=2 if exact else 4,
        backward_rows=1 if exact else 2,
        chunk=next((size for size in chunks if dim % size == 0), chunks[-1]),
        warps=8 if group * width * width > 2048 else 4,
        band_warps=8 if width > 32 else 4,
        stages=2,
        precision="ieee" if exact else "tf32",
    )


def plan_for(dim: int, num_heads: int, dtype: torch.dtype, tokens: int) -> Plan:
    """The plan of a call with this many tokens; :func:`dataclasses.replace` gives a variant of it."""
    return default_plan(dim, num_heads, dtype, bucket(tokens))
