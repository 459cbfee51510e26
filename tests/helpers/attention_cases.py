"""Inputs of focused linear attention that fast implementations must get right."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from flatten_det.attention import FocusedLinearAttention, tiles
from flatten_det.attention import plain as plain_operations
from flatten_det.attention import reference as equation
from flatten_det.attention.reference import Inputs

# Relative errors of the norm that are allowed against float64.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
MAPS = {1: (1, 1), 7: (1, 7), 49: (7, 7), 63: (9, 7), 3136: (56, 56), 4097: (17, 241)}
NAMES = ("q", "k", "v", "positions", "scale", "dwc_weight", "dwc_bias")


def reference(**inputs) -> Tensor:
    """The equation, by the names of :class:`Inputs`."""
    return equation.focused_linear_attention(Inputs(**inputs))


def plain(**inputs) -> Tensor:
    """The plain operations, by the names of :class:`Inputs`."""
    return plain_operations.focused_linear_attention(Inputs(**inputs))


def make_inputs(
    hw_shape: tuple[int, int],
    num_heads: int,
    head_dim: int,
    batch: int = 2,
    factor: float = 1.0,
    kernel_size: int = 5,
    dtype: torch.dtype = torch.float32,
    rows: str = "random",
) -> dict[str, Tensor | None]:
    """Random inputs by name; q, k and v are views of one tensor, as a projection returns them.

    Args:
        factor: of q, k, v and the positions.
        rows: ``'negative'``: q and k have no positive entry, so that only eps remains; ``'zero'``:
            some rows are zero; ``'constant'``: all tokens are alike.
    """
    generator = torch.Generator().manual_seed(sum(hw_shape) + num_heads)
    tokens, channels = hw_shape[0] * hw_shape[1], num_heads * head_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    qkv = normal(batch, tokens, 3 * channels)
    positions = 0.3 * normal(1, tokens, channels)
    if rows == "negative":
        qkv[..., : 2 * channels] = -qkv[..., : 2 * channels].abs()
        positions = -positions.abs()
    elif rows == "zero":
        qkv[:, ::2] = 0
    elif rows == "constant":
        qkv[:] = qkv[:, :1].clone()
        positions[:] = positions[:, :1].clone()
    q, k, v = (factor * qkv).to(dtype).chunk(3, dim=-1)
    return {
        "q": q,
        "k": k,
        "v": v,
        "positions": factor * positions,
        "scale": normal(1, 1, channels),
        "dwc_weight": normal(head_dim, 1, kernel_size, kernel_size) if kernel_size else None,
        "dwc_bias": normal(head_dim) if kernel_size else None,
    }


def with_gradients(function, inputs: dict[str, Tensor | None], grad: Tensor, **options):
    """The output and the gradients by name, for the gradient ``grad`` of the output."""
    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items() if x is not None}
    out = function(**(inputs | leaves), **options)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad.to(out.dtype))
    return out.detach(), dict(zip(leaves, gradients, strict=True))


def exact(inputs: dict[str, Tensor | None], grad: Tensor, **options):
    """:func:`with_gradients` of the reference in float64."""
    double = {n: None if x is None else x.double() for n, x in inputs.items()}
    return with_gradients(reference, double, grad.double(), **options)


def exact_of_each(
    inputs: dict[str, Tensor | None],
    grad: Tensor,
    hw_shape: tuple[int, int],
    sizes: Sequence[tuple[int, int]],
    **options,
):
    """:func:`exact` of each padded map alone: zeros in the padding, sums of the parameters' gradients."""
    out = torch.zeros(grad.shape).double()
    gradients = {n: torch.zeros(x.shape).double() for n, x in inputs.items() if x is not None}
    for index, size in enumerate(sizes):
        own = torch.arange(hw_shape[0] * hw_shape[1]).view(hw_shape)[: size[0], : size[1]].flatten()
        places = {n: (min(index, len(inputs[n]) - 1), own) for n in NAMES[:4] if n in gradients}
        cut = {n: inputs[n][place][None] for n, place in places.items()}
        alone, found = exact(inputs | cut, grad[index, own][None], hw_shape=size, **options)
        out[index, own] = alone[0]
        for name, gradient in found.items():
            gradients[name][places.get(name, ...)] += gradient[0] if name in places else gradient
    return out, gradients


def randomised(module: nn.Module, std: float = 0.3) -> nn.Module:
    """Without a parameter at zero or one, and in evaluation mode."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    return module.eval()


def make_layer(num_heads: int = 2, **options) -> FocusedLinearAttention:
    """A :func:`randomised` one of 32 channels on a grid of 6 x 5."""
    return randomised(FocusedLinearAttention(32, num_heads, (6, 5), **options))


def use_tiles_of(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small maps be computed as large ones are: in tiles of so many tokens of 64 channels."""
    monkeypatch.setattr(tiles, "TILE_TOKENS", tokens)
    monkeypatch.setattr(tiles, "_LEAST_TOKENS", 1)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Of the norm; the absolute error where nothing is expected."""
    difference = (found.double() - expected.double()).norm().item()
    return difference / (expected.double().norm().item() or 1.0)
