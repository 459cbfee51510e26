"""What a call's kernels have in common: sizes, plan, and arguments in the form that they take."""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import Plan, head_block, plan_for

# Programs per multiprocessor that a launch aims at: enough to hide the latency of memory, few enough to
# keep the split sums small.
PROGRAMS_PER_MULTIPROCESSOR = 4


# Rows of a band of the convolution, if that leaves programs enough: K - 1 more are read.
SHORTEST_BAND = 8


class Regions(NamedTuple):
    """How a map is cut for a kernel with the convolution, see :func:`.tiles.region_groups`.

    Attributes:
        groups, columns: groups per region, and columns of each.
        rows: of a band.
        count: regions of the map.
        block: tokens per tile.
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


@dataclass(frozen=True)
class Call:
    """Sizes of a call and what follows from them.

    Attributes:
        B, N, C: of q.
        heads, head_dim: h and d.
        H, W: of the map, H * W = N.
        operand: dtype of the products.
        plan: block sizes.
        programs: that fill the device.
        is_backward: the direction.
    """

    B: int
    N: int
    C: int
    heads: int
    head_dim: int
    H: int
    W: int
    operand: torch.dtype
    plan: Plan
    programs: int
    is_backward: bool

    @property
    def group(self) -> int:
        """Heads per program, all or 1."""
        return self.plan.backward_group if self.is_backward else self.plan.group

    @property
    def groups(self) -> int:
        """Programs that share the heads."""
        return self.heads // self.group

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
        """Regions for programs of so many warps.

        Args:
            columns: of a group.
            block: tokens per tile at least; a tile is some rows of a region.
            sharing: programs that a region has for each batch entry.
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


def make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    hw_shape: tuple[int, int],
    plan: Plan | None,
    is_backward: bool,
) -> Call:
    """Sizes and plan of a call.

    Raises:
        ValueError: if the map does not have as many positions as there are tokens.
    """
    B, N, C = q.shape
    H, W = hw_shape
    if H * W != N:
        raise ValueError(
            f"hw_shape={tuple(hw_shape)} has {H * W} positions, but there are {N} tokens"
        )
    widest = torch.float32 if torch.float32 in (q.dtype, k.dtype, v.dtype) else v.dtype
    plan = plan or plan_for(C, num_heads, widest, N, W)
    programs = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(q.device)
    return Call(B, N, C, num_heads, C // num_heads, H, W, widest, plan, programs, is_backward)


def check_parameters(
    call: Call,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
    sizes: Tensor | None = None,
) -> None:
    """The kernels would read beyond the end of parameters that are too small.

    Raises:
        ValueError: if a parameter has another shape than the kernels take.
    """
    N, C, d = call.N, call.C, call.head_dim
    K = 1 if dwc_weight is None else dwc_weight.shape[-1]
    for name, x, shapes in (
        ("positions", positions, [(1, N, C), (call.B, N, C)]),
        ("scale", scale, [(1, 1, C), (C,)]),
        ("dwc_weight", dwc_weight, [(d, 1, K, K)]),
        ("dwc_bias", dwc_bias, [(d,)]),
        ("sizes", sizes, [(call.B, 2)]),
    ):
        if x is not None and tuple(x.shape) not in shapes:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, it must be {shapes[0]}")
    if sizes is not None and not (sizes.dtype == torch.int32 and sizes.is_contiguous()):
        raise ValueError(f"sizes must be contiguous int32; they are {sizes.dtype}")
    if K % 2 == 0:
        raise ValueError(f"dwc_weight has a kernel of {K}x{K}, its size must be odd")


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
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
