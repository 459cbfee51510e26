"""Tensors that all candidates of a setting share."""

from dataclasses import dataclass, replace
from math import prod, sqrt

import torch
from torch import Tensor

from ..dtypes import DTYPES
from .cases import CORE, Setting
from .layer import build_layer

KERNEL_SIZE = 5
_SEED = 0
_FACTORS = {"scale": 0.5, "positions": 0.2, "positional_encoding": 0.2, "bias": 0.1}


@dataclass(frozen=True)
class Inputs:
    """Tensors of a setting.

    Attributes:
        setting: what they are for.
        tensors: what is differentiated, by name: q, k, v and the core's parameters, or x and the layer's.
        grad: of the output, ``(B, N, C)``.
    """

    setting: Setting
    tensors: dict[str, Tensor]
    grad: Tensor

    def exact(self) -> "Inputs":
        """The same numbers in float64, without autocast."""
        return Inputs(
            replace(self.setting, amp=False),
            {name: x.double() for name, x in self.tensors.items()},
            self.grad.double(),
        )


def make_inputs(setting: Setting) -> Inputs:
    """Random inputs, the same for the same setting.

    At the core level q, k and v are views of one tensor, as a projection returns them. Under AMP they are
    in the low precision, as it returns them there; the parameters, and x at the module level, are not.
    """
    case, dtype = setting.case, DTYPES[setting.dtype]
    of_parameters = torch.float32 if setting.amp else dtype
    generator = torch.Generator(setting.device).manual_seed(_SEED)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=setting.device)

    tokens, channels = case.tokens, case.channels
    if setting.level == CORE:
        projected = normal(setting.batch, tokens, 3 * channels).to(dtype)
        values = dict(zip("qkv", projected.chunk(3, dim=-1), strict=True))
        shapes = {
            "positions": (1, tokens, channels),
            "scale": (1, 1, channels),
            "dwc_weight": (channels // case.heads, 1, KERNEL_SIZE, KERNEL_SIZE),
            "dwc_bias": (channels // case.heads,),
        }
    else:
        values = {"x": normal(setting.batch, tokens, channels).to(of_parameters)}
        with torch.device("meta"):
            layer = build_layer(case)
        shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    for name, shape in shapes.items():
        values[name] = (normal(*shape) * _factor(name, shape)).to(of_parameters)
    grad = normal(setting.batch, tokens, channels).to(dtype)
    return Inputs(setting, values, grad)


def _factor(name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation as of trained weights: a projection neither shrinks nor stretches."""
    kind = name.replace("dwc_", "").rsplit(".", 1)[-1]
    return _FACTORS.get(kind, 1 / sqrt(prod(shape[1:])))
