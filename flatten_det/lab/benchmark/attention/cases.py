"""Shapes of the attention in backbones, and settings to run them in."""

from dataclasses import dataclass

from ....errors import UserError
from ..dtypes import DTYPES

CORE, MODULE = LEVELS = ("core", "module")
FORWARD, TRAINING = MODES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Case:
    """One layer's shape.

    Attributes:
        name: of the shape.
        channels: C.
        heads: h.
        height, width: of the map; N = height * width.
        fused_qkv: one projection (Swin), or one for q and one for k and v (PVT).
    """

    name: str
    channels: int
    heads: int
    height: int
    width: int
    fused_qkv: bool = True

    @property
    def hw_shape(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def tokens(self) -> int:
        return self.height * self.width


@dataclass(frozen=True)
class Setting:
    """All that candidates have in common.

    Attributes:
        case: the shape.
        level: ``'core'`` (q, k and v are given) or ``'module'`` (with the projections).
        mode: ``'forward'`` (no gradients) or ``'forward+backward'``.
        dtype: key of :data:`~flatten_det.lab.benchmark.dtypes.DTYPES`.
        batch: B.
        amp: parameters in float32, the computation under autocast to ``dtype``.
        device: as torch names it.
    """

    case: Case
    level: str = MODULE
    mode: str = FORWARD
    dtype: str = "fp32"
    batch: int = 1
    amp: bool = False
    device: str = "cpu"

    @property
    def training(self) -> bool:
        return self.mode == TRAINING

    @property
    def unit(self) -> int:
        """Bytes of one tensor (B, N, C)."""
        return self.batch * self.case.tokens * self.case.channels * DTYPES[self.dtype].itemsize

    @property
    def floor_bytes(self) -> int | None:
        """Bytes that must move between memory and chip; None with projections, which may compute instead.

        Forward 6 units: k, v and positions are read for the sums over the keys, then q and v, and the
        output is written. With the backward pass 16.
        """
        if self.level != CORE:
            return None
        return (16 if self.training else 6) * self.unit


# Of images of 800x1280 px, but for the last of PVT: 512x512 tokens.
CASES = {
    case.name: case
    for case in (
        Case("pvt-s1", 64, 1, 200, 320, fused_qkv=False),
        Case("pvt-s2", 128, 2, 100, 160, fused_qkv=False),
        Case("pvt-s3", 320, 5, 50, 80, fused_qkv=False),
        Case("pvt-s4", 512, 8, 25, 40, fused_qkv=False),
        Case("pvt-s1-262144", 64, 1, 512, 512, fused_qkv=False),
        Case("swin-s1", 96, 3, 200, 320),
        Case("swin-s2", 192, 6, 100, 160),
    )
}


def find_case(text: str) -> Case:
    """The case of a name, or of ``C,heads,H,W``.

    Raises:
        UserError: if it is neither.
    """
    if text in CASES:
        return CASES[text]
    try:
        channels, heads, height, width = (int(part) for part in text.split(","))
    except ValueError:
        names = ", ".join(CASES)
        raise UserError(f"--shape {text}: give C,heads,H,W or one of {names}") from None
    if min(channels, heads, height, width) < 1 or channels % heads:
        raise UserError(f"--shape {text}: sizes are positive, and C is a multiple of the heads")
    return Case(f"c{channels}-h{heads}-{height}x{width}", channels, heads, height, width)
