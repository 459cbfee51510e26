"""Inputs of the kernels, and the reference in float64 to compare with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from attention_cases import NAMES, TOLERANCES, exact, exact_of_each, make_inputs, relative_error
from torch import Tensor

from flatten_det.attention import gpu
from flatten_det.attention.gpu.plan import Plan
from flatten_det.attention.reference import Inputs


class Case(NamedTuple):
    """Arguments of one attention; tensors in the order of ``NAMES``."""

    tensors: list[Tensor | None]
    num_heads: int
    hw_shape: tuple[int, int]
    grad: Tensor

    def inputs(self, sizes: Tensor | None = None) -> Inputs:
        """As the kernels take them."""
        return Inputs(*self.tensors, self.num_heads, self.hw_shape, sizes=sizes)


class Results(NamedTuple):
    """Output and gradients in the order of ``NAMES``."""

    out: Tensor
    grads: list[Tensor | None]


def make_case(
    hw_shape: tuple[int, int],
    num_heads: int,
    d: int,
    kernel_size: int = 5,
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
    B: int = 2,
    extras: bool = True,
) -> Case:
    """Random inputs; q, k and v are views of one fused projection.

    Args:
        factor: of q, k, v and positions.
        extras: positions, scale, and the bias of the convolution.
    """
    inputs = make_inputs(hw_shape, num_heads, d, B, factor, kernel_size, dtype)
    if not extras:
        inputs |= dict(positions=None, scale=None, dwc_bias=None)
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(inputs["q"].shape, generator=generator).to(dtype)
    return Case(list(inputs.values()), num_heads, hw_shape, grad)


def run_kernels(
    case: Case, plan: Plan | None = None, valid: Sequence[tuple[int, int]] | None = None
) -> Results:
    """The kernels, asked for every gradient there is; ``valid``: sizes of the maps without padding."""
    inputs = case.inputs(None if valid is None else torch.tensor(valid, dtype=torch.int32))
    out, *saved = gpu.forward(inputs, plan)
    needs = tuple(x is not None for x in case.tensors)
    grads = gpu.backward(case.grad, inputs, *saved, needs, plan)
    return Results(out, list(grads))


def check(
    case: Case, plan: Plan | None = None, valid: Sequence[tuple[int, int]] | None = None
) -> None:
    """Values and all gradients of the kernels against the reference, by relative error of the norm."""
    inputs, options = dict(zip(NAMES, case.tensors, strict=True)), dict(num_heads=case.num_heads)
    if valid is None:
        out, gradients = exact(inputs, case.grad, hw_shape=case.hw_shape, **options)
    else:
        out, gradients = exact_of_each(inputs, case.grad, case.hw_shape, valid, **options)
    expected, errors, ours = {"out": out} | gradients, {}, run_kernels(case, plan, valid)
    results = zip(("out", *NAMES), (ours.out, *ours.grads), strict=True)
    for (name, value), like in zip(results, (inputs["v"], *case.tensors), strict=True):
        if like is None:
            assert value is None, name
            continue
        exact_value = expected[name]
        assert (value.shape, value.dtype) == (exact_value.shape, like.dtype), name
        errors[name] = relative_error(value, exact_value)
        if valid is not None and name in ("out", "q", "k", "v"):
            assert not value[exact_value == 0].any(), name
    assert all(error <= TOLERANCES[inputs["v"].dtype] for error in errors.values()), errors
