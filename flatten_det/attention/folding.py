"""Projections that already contain scale, eps and bias of the feature map: for frozen weights.

The feature map sees queries only as ``(ReLU(W x + b) + eps) / softplus(s)``, and keys with positions added
before the ReLU. With r = 1/softplus(s) > 0 per channel this is ``max(r (W x + b) + eps r, eps r)``: the
factors go into the weights, and one maximum per entry remains.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class FoldedProjections(NamedTuple):
    """What replaces the projections, the positions and the scale.

    Attributes:
        weight: of q, k and v, ``(3C, C)``.
        bias: ``(3C,)``.
        positions: on their own grid, ``(1, h*w, C)``, not scaled: a pass over them is left to their reader.
        position_scale: what they are to be multiplied by, ``(C,)``.
        floor: of q and k per channel, ``(C,)``.
    """

    weight: Tensor
    bias: Tensor
    positions: Tensor
    position_scale: Tensor
    floor: Tensor


def fold_projections(
    weight: Tensor, bias: Tensor | None, positions: Tensor, scale: Tensor, eps: float
) -> FoldedProjections:
    """Fold scale and eps into the projections.

    Args:
        weight: of q, k and v, ``(3C, C)``.
        bias: ``(3C,)`` or None.
        positions: ``(1, h*w, C)``.
        scale: the parameter s, ``(1, 1, C)``.
        eps: added after the ReLU.
    """
    inverse = 1 / F.softplus(scale.flatten())
    floor = eps * inverse
    ones = torch.ones_like(inverse)
    factors = torch.cat([inverse, inverse, ones])
    bias = torch.zeros_like(factors) if bias is None else bias * factors
    return FoldedProjections(
        weight * factors[:, None],
        bias + torch.cat([floor, floor, 0 * ones]),
        positions,
        inverse,
        floor,
    )
