"""What a call's kernels have in common: sizes, plan, and arguments in the form that they take."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .plan import Plan, head_block, plan_for

# Programs per multiprocessor that a launch aims at: enough to hide the latency of memory, few enough to
# keep the split sums small.
PROGRAMS_PER_MULTIPROCESSOR = 4


@dataclass(frozen=True)
class Call:
    """Sizes of a call and what follows from them.

    Attributes:
        B, N, C: of q.
        heads, head_dim: h and d.
        H, W: of the map, H * W = N.
        plan: block sizes.
        programs: that fill the device.
    """

    B: int
    N: int
    C: int
    heads: int
    head_dim: int
    H: int
    W: int
    plan: Plan
    programs: int

    @property
    def constants(self) -> dict[str, Any]:
        """Compile-time arguments of all kernels that attend."""
        return dict(
            C=self.C,
            HEADS=self.heads,
            HEAD_DIM=self.head_dim,
            D=head_block(self.head_dim),
            CHUNK=self.plan.chunk,
            PRECISION=self.plan.precision,
        )

    @property
    def groups(self) -> int:
        """Programs that share the heads where each keeps sums for ``plan.group`` of them."""
        return self.heads // self.plan.group

    def tiles(self, block: int) -> int:
        """Tiles of the tokens of one batch entry."""
        return ceil_div(self.N, block)

    def splits(self, block: int) -> tuple[int, int]:
        """Number of splits of the tokens, and tiles per split."""
        tiles = self.tiles(block)
        wanted = ceil_div(self.programs, self.B * self.groups)
        per_split = ceil_div(tiles, min(tiles, wanted))
        return ceil_div(tiles, per_split), per_split

    def band_tiles(self, rows: int) -> int:
        """Band tiles of one batch entry."""
        return ceil_div(ceil_div(self.H, rows) * self.W, self.plan.columns)

    def heads_per_program(self, rows: int) -> int:
        """Heads of a program of the band kernels: all, unless small maps leave the device idle."""
        groups = min(self.heads, ceil_div(self.programs, self.B * self.band_tiles(rows)))
        return ceil_div(self.heads, groups)


def make_call(
    q: Tensor, k: Tensor, v: Tensor, num_heads: int, hw_shape: tuple[int, int], plan: Plan | None
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
    plan = plan or plan_for(C, num_heads, widest, N)
    programs = PROGRAMS_PER_MULTIPROCESSOR * _multiprocessors(q.device)
    return Call(B, N, C, num_heads, C // num_heads, H, W, plan, programs)


def check_parameters(
    call: Call,
    positions: Tensor | None,
    scale: Tensor | None,
    dwc_weight: Tensor | None,
    dwc_bias: Tensor | None,
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
    ):
        if x is not None and tuple(x.shape) not in shapes:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, it must be {shapes[0]}")
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
