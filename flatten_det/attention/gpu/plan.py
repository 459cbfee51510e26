"""Block sizes per shape, a small table for all image sizes of a model; and the sizes of a call with them."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference import Inputs

LONGEST_BUCKET = 256
# Maps at least this wide fill groups of several columns.
WIDE = 16
# Programs per multiprocessor that a launch aims at: enough to hide the latency of memory, few enough to
# keep the split sums small.
PROGRAMS_PER_MULTIPROCESSOR = 4
# Rows of a band of the convolution, if that leaves programs enough: K - 1 more are read.
SHORTEST_BAND = 8


@dataclass(frozen=True)
class Plan:
    """Compile-time constants of the kernels. Nothing here depends on the image beyond its bucket.

    Attributes:
        samples: tokens whose mean is the centre of the values (power of two).
        group: heads per program of the forward kernels, all or 1. With 1, what the heads of a row share is
            computed by a kernel of its own. Backward it is always 1.
        block, attend_block, query_block, key_block: tokens per tile of ``reduce_keys``, ``attend``,
            ``backward_queries`` with ``join_heads``, and ``backward_keys`` (powers of two >= 16).
        norm_block: of ``row_norms``, which holds whole rows.
        warps, attend_warps, query_warps, key_warps, norm_warps, depthwise_warps: per program.
        stages, backward_stages: of the software pipeline of the kernels with products.
        lanes: channels per thread where the convolution walks (power of two).
        columns, depthwise_columns: of the map per thread, in the convolution and in its weight's gradient.
        fused_convolution: the convolution is the second half of the kernels that attend; False: a
            kernel of its own.
    """

    samples: int
    group: int
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
    dim: int, num_heads: int, dtype: torch.dtype, tokens_bucket: int, is_wide: bool, generation: int
) -> Plan:
    """The plan of a layer, from register counts: see :mod:`flatten_det.attention.gpu`.

    Args:
        dtype: of the products.
        tokens_bucket: of :func:`bucket`.
        is_wide: whether the map has :data:`WIDE` columns.
        generation: major number of the compute capability; 0: unknown, or none of NVIDIA's.
    """
    width = head_block(dim // num_heads)
    exact = dtype == torch.float32
    group = num_heads if num_heads <= 3 and num_heads * width * width <= 8192 else 1
    block = min(32 if exact else 64, tokens_bucket)
    row = num_heads * width
    # Products of float32 are multiplications and additions of single numbers.
    warps = 8 if exact and width > 32 else 4
    # On Blackwell, the backward kernels of 4 warps spill up to 1 KB a thread, those of 8 nothing.
    backward_warps = 8 if generation == 10 else warps
    return Plan(
        samples=min(32, tokens_bucket),
        group=group,
        block=min(32, block) if group > 1 else block,
        attend_block=block,
        query_block=block,
        key_block=block,
        norm_block=min(64 if row <= 512 else 16, tokens_bucket),
        warps=warps,
        attend_warps=4,
        query_warps=backward_warps,
        key_warps=backward_warps,
        norm_warps=8 if row > 192 else 4,
        depthwise_warps=4,
        stages=2,
        backward_stages=1,
        lanes=4,
        columns=4 if is_wide else 1,
        depthwise_columns=2 if is_wide else 1,
    )


def plan_for(
    dim: int, num_heads: int, dtype: torch.dtype, tokens: int, width: int, generation: int = 0
) -> Plan:
    """The plan of a map of this many tokens and columns; other arguments as for :func:`default_plan`."""
    return default_plan(dim, num_heads, dtype, bucket(tokens), width >= WIDE, generation)


class Regions(NamedTuple):
    """How a map is cut for a kernel with the convolution, see :func:`.tiles.region_groups`.

    Groups per region, columns of each, rows of a band, regions of the map, and tokens per tile.
    """

    groups: int
    columns: int
    rows: int
    count: int
    block: int

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time arguments."""
        return dict(GROUPS=self.groups, COLUMNS=self.columns)


@dataclass
class Call:
    """A call's inputs, its sizes ``(B, N, C)`` of q and ``(H, W)`` of the map, and what follows from them.

    Attributes:
        operand: dtype of the products.
        programs: that fill the device.
    """

    inputs: Inputs
    operand: torch.dtype
    plan: Plan
    programs: int
    is_backward: bool

    def __post_init__(self) -> None:
        self.B, self.N, self.C = self.inputs.q.shape
        self.H, self.W = self.inputs.hw_shape
        self.heads = self.inputs.num_heads
        self.head_dim = self.C // self.heads

    @cached_property
    def q(self) -> tuple[Tensor, int, int]:
        return strided(self.inputs.q)

    @cached_property
    def k(self) -> tuple[Tensor, int, int]:
        return strided(self.inputs.k)

    @cached_property
    def v(self) -> tuple[Tensor, int, int]:
        return strided(self.inputs.v)

    @cached_property
    def positions(self) -> tuple[Tensor, int, int]:
        """Without any, the keys, which no kernel reads as such then."""
        return self.k if self.inputs.positions is None else strided(self.inputs.positions)

    @cached_property
    def scale(self) -> Tensor | None:
        return None if self.inputs.scale is None else self.inputs.scale.contiguous()

    @cached_property
    def dwc_weight(self) -> Tensor | None:
        return None if self.inputs.dwc_weight is None else self.inputs.dwc_weight.contiguous()

    @property
    def kernel_size(self) -> int:
        """K, or 0 without a convolution."""
        return 0 if self.inputs.dwc_weight is None else self.inputs.dwc_weight.shape[-1]

    @property
    def groups(self) -> int:
        """Programs that share the heads."""
        return self.heads if self.is_backward else self.heads // self.plan.group

    def tiles(self, block: int) -> int:
        """Tiles of the tokens of one batch entry."""
        return ceil_div(self.N, block)

    def splits(self, block: int) -> tuple[int, int]:
        """Number of splits of the tokens, and tiles per split."""
        tiles = self.tiles(block)
        wanted = ceil_div(self.programs, self.B * self.groups)
        per_split = ceil_div(tiles, min(tiles, wanted))
        return ceil_div(tiles, per_split), per_split

    def regions(self, warps: int, columns: int, block: int, sharing: int) -> Regions:
        """Regions for programs of so many warps, of which ``sharing`` share one of each batch entry.

        A tile is some rows of a region, with ``block`` tokens at least.
        """
        groups = max(32 * warps * self.plan.lanes // head_block(self.head_dim), 1)
        per_band = ceil_div(self.W, columns)
        wanted = ceil_div(self.programs * groups, self.B * sharing * per_band)
        rows = max(ceil_div(self.H, wanted), min(self.H, SHORTEST_BAND))
        block = max(block, groups * columns)
        step = block // (groups * columns)
        rows = ceil_div(rows, step) * step
        count = ceil_div(ceil_div(self.H, rows) * per_band, groups)
        return Regions(groups, columns, rows, count, block)


def make_call(inputs: Inputs, plan: Plan | None, is_backward: bool) -> Call:
    """Sizes and plan of a call.

    Raises:
        ValueError: if the map does not have as many positions as there are tokens.
    """
    (_, N, C), (H, W) = inputs.q.shape, inputs.hw_shape
    if H * W != N:
        raise ValueError(
            f"hw_shape={tuple(inputs.hw_shape)} has {H * W} positions, but there are {N} tokens"
        )
    q, k, v = inputs[:3]
    widest = torch.float32 if torch.float32 in (q.dtype, k.dtype, v.dtype) else v.dtype
    multiprocessors, generation = _card(q.device)
    plan = plan or plan_for(C, inputs.num_heads, widest, N, W, generation)
    programs = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors
    return Call(inputs, widest, plan, programs, is_backward)


def check_parameters(inputs: Inputs) -> None:
    """Raise ValueError for parameters of another shape: kernels would read beyond the end of small ones."""
    (B, N, C), sizes = inputs.q.shape, inputs.sizes
    d = C // inputs.num_heads
    K = 1 if inputs.dwc_weight is None else inputs.dwc_weight.shape[-1]
    for name, shapes in (
        ("positions", [(1, N, C), (B, N, C)]),
        ("scale", [(1, 1, C), (C,)]),
        ("dwc_weight", [(d, 1, K, K)]),
        ("dwc_bias", [(d,)]),
        ("sizes", [(B, 2)]),
    ):
        x = getattr(inputs, name)
        if x is not None and tuple(x.shape) not in shapes:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, it must be {shapes[0]}")
    if sizes is not None and not (sizes.dtype == torch.int32 and sizes.is_contiguous()):
        raise ValueError(f"sizes must be contiguous int32; they are {sizes.dtype}")
    if K % 2 == 0:
        raise ValueError(f"dwc_weight has a kernel of {K}x{K}, its size must be odd")


def empty(*shape: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unwritten memory on the device of ``like``, for all that kernels write; tests fill it with NaN."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def strided(x: Tensor) -> tuple[Tensor, int, int]:
    """Tokens ``(B, N, C)`` as the kernels take them: tensor, batch and token stride in eight elements.

    A batch of one is broadcast. Views of a fused projection pass as they are; only memory that 16-byte
    accesses cannot read is copied.
    """
    if x.stride(-1) != 1 or x.stride(0) % 8 or x.stride(1) % 8 or x.data_ptr() % 16:
        x = x.contiguous()
    return x, 0 if x.shape[0] == 1 else x.stride(0) // 8, x.stride(1) // 8


@cache
def _card(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and generation as for :func:`default_plan`."""
    if device.type != "cuda":
        return 1, 0
    card = torch.cuda.get_device_properties(device)
    return card.multi_processor_count, 0 if torch.version.hip else card.major
