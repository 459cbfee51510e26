"""The feature map of a tile, row by row."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import Buffers


class Activation(NamedTuple):
    """How a token becomes non-negative: ``(ReLU(x) + eps) * inverse_scale``, or ``max(x, floor)``.

    The second form is the first one with everything but the maximum folded into the projection.

    Attributes:
        inverse_scale: 1 / softplus(s) per channel, or None for 1.
        floor: what remains of a negative entry, per channel: eps * inverse_scale.
        folded: whether inputs have the scale and eps already.
    """

    inverse_scale: Tensor | None
    floor: Tensor
    folded: bool = False

    @classmethod
    def of(
        cls, scale: Tensor | None, eps: float, channels: int, floor: Tensor | None = None
    ) -> "Activation":
        """From the layer's parameter s ``(1, 1, C)``, or from the floor of folded projections."""
        if floor is not None:
            return cls(None, floor.detach().float(), folded=True)
        if scale is None:
            return cls(None, torch.full((channels,), eps))
        inverse_scale = 1 / F.softplus(scale.detach().float().flatten())
        return cls(inverse_scale, eps * inverse_scale)

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Into ``out``, which may be ``x``."""
        if self.folded:
            return torch.maximum(x, self.floor, out=out)
        if x.dtype == out.dtype:
            torch.clamp_min(x, 0, out=out)
        else:
            out.copy_(x).clamp_min_(0)
        if self.inverse_scale is None:
            return out.add_(self.floor)
        return torch.addcmul(self.floor, out, self.inverse_scale, out=out)


# Length to which rows are brought before they are cubed. The eps in place of a negative entry would be
# 1e-7 or less in a unit vector, and its sixth power a subnormal number, with which arithmetic is ten times
# slower. Sixth powers reach 2^72 at the most; the gradients have its reciprocals.
LENGTH = 2.0**12


class Focused(NamedTuple):
    """Rows a > 0 of a tile, brought to one length; f_3(a) = ``norm * cube / cube_norm``.

    Attributes:
        scaled: ``LENGTH * a/|a|``, ``(n, C)``.
        cube: its elementwise third power, ``(n, C)``.
        norm: |a|, ``(n, 1)``.
        cube_norm: |cube|, ``(n, 1)``.
    """

    scaled: Tensor
    cube: Tensor
    norm: Tensor
    cube_norm: Tensor

    def values(self) -> Tensor:
        """f_3(a), ``(n, C)``; it overwrites ``cube``."""
        return self.cube.mul_(self.norm / self.cube_norm)


def focus(a: Tensor, buffers: Buffers) -> Focused:
    """Focus positive rows ``a (n, C)``, in place."""
    norm = _row_norm(a)
    scaled = a.mul_(LENGTH / norm)
    cube = torch.pow(scaled, 3, out=buffers("cube", *a.shape))
    return Focused(scaled, cube, norm, _row_norm(cube))


def _row_norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a, dim=-1).unsqueeze(-1)
