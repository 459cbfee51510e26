"""Block sizes per shape: a small table, the same for all image sizes of a model."""

from dataclasses import dataclass
from functools import cache

import torch

LONGEST_BUCKET = 256
# Maps at least this wide fill groups of several columns.
WIDE = 16


@dataclass(frozen=True)
class Plan:
    """Compile-time constants of the kernels. Nothing here depends on the image beyond its bucket.

    Attributes:
        samples: tokens whose mean is the centre of the values (power of two).
        group, backward_group: heads per program of the forward and the backward kernels, all or 1. With 1,
            what the heads of a row share is computed by kernels of their own.
        block, attend_block, query_block, key_block: tokens per tile of ``reduce_keys``, ``attend``,
            ``backward_queries`` and ``backward_keys`` (powers of two >= 16).
        norm_block: of the kernels that compute what heads share; they hold whole rows.
        warps, attend_warps, query_warps, key_warps, norm_warps, depthwise_warps: per program.
        stages, backward_stages: of the software pipeline of the kernels with products.
        lanes: channels per thread where the convolution walks (power of two).
        columns, depthwise_columns: of the map per thread, in the convolution and in its weight's gradient.
        fused_convolution: the convolution is the second half of the kernels that attend; False: a
            kernel of its own.
    """

    samples: int
    group: int
    backward_group: int
    block: int
    attend_block: int
    query_block: int
    key_block: int
    norm_block: int
    warps: int
    attend_warps: int
    query_warps: int
    key_warps: int
    norm_warps: int
    depthwise_warps: int
    stages: int
    backward_stages: int
    lanes: int
    columns: int
    depthwise_columns: int
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
def default_plan(
    dim: int, num_heads: int, dtype: torch.dtype, tokens_bucket: int, is_wide: bool
) -> Plan:
    """The plan of a layer, from register counts: see :mod:`flatten_det.attention.gpu`.

    Args:
        dim: channels C.
        num_heads: h.
        dtype: of the products.
        tokens_bucket: of :func:`bucket`.
        is_wide: whether the map has :data:`WIDE` columns.
    """
    width = head_block(dim // num_heads)
    exact = dtype == torch.float32
    group = num_heads if num_heads <= 3 and num_heads * width * width <= 8192 else 1
    block = min(32 if exact or group > 1 else 64, tokens_bucket)
    row = num_heads * width
    # Products of float32 are multiplications and additions of single numbers.
    warps = 8 if exact and width > 32 else 4
    return Plan(
        samples=min(32, tokens_bucket),
        group=group,
        backward_group=1,
        block=block,
        attend_block=min(32 if exact else 64, tokens_bucket),
        query_block=min(32 if exact else 64, tokens_bucket),
        key_block=min(32 if exact else 64, tokens_bucket),
        norm_block=min(64 if row <= 512 else 16, tokens_bucket),
        warps=warps,
        attend_warps=4,
        query_warps=warps,
        key_warps=warps,
        norm_warps=8 if row > 192 else 4,
        depthwise_warps=4,
        stages=2,
        backward_stages=1,
        lanes=4,
        columns=4 if is_wide else 1,
        depthwise_columns=2 if is_wide else 1,
    )


def plan_for(dim: int, num_heads: int, dtype: torch.dtype, tokens: int, width: int) -> Plan:
    """The plan of a map of this many tokens and columns."""
    return default_plan(dim, num_heads, dtype, bucket(tokens), width >= WIDE)
