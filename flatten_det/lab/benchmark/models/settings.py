"""Sizes of images, and settings to run models in."""

import re
from dataclasses import dataclass

from ....errors import UserError
from ..dtypes import DTYPES

INFERENCE, TRAINING = MODES = ("inference", "training")


@dataclass(frozen=True, order=True)
class Size:
    """Of an image, in pixels."""

    height: int
    width: int

    @property
    def hw(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def find_size(text: str) -> Size:
    """The size of ``512`` (a square) or ``800x1280`` (height x width).

    Raises:
        UserError: if it is neither.
    """
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or 0 in (size := Size(int(found[1]), int(found[2] or found[1]))).hw:
        raise UserError(f"--sizes {text}: give pixels, such as 512, or height x width: 800x1280")
    return size


@dataclass(frozen=True)
class Setting:
    """All that models have in common.

    Attributes:
        size: of the images.
        mode: ``'inference'`` (evaluation mode, no gradients) or ``'training'`` (forward and backward).
        dtype: key of :data:`~flatten_det.lab.benchmark.dtypes.DTYPES`.
        amp: parameters in float32, the computation under autocast to ``dtype``.
        batch: number of images.
        device: as torch names it.
    """

    size: Size
    mode: str = INFERENCE
    dtype: str = "fp32"
    amp: bool = False
    batch: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.dtype not in DTYPES:
            raise ValueError(f"no such setting: {self.mode}, {self.dtype}")

    @property
    def training(self) -> bool:
        return self.mode == TRAINING

    @property
    def kind(self) -> str:
        """All but the size, in words."""
        images = "" if self.batch == 1 else f", batch {self.batch}"
        return f"{self.mode}, {self.dtype}{' AMP' if self.amp else ''}{images}"
