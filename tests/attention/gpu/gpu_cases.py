"""Inputs of the kernels, and the reference in float64 to compare with."""

from typing import NamedTuple

import torch
from attention_cases import NAMES, TOLERANCES, make_inputs, relative_error
from torch import Tensor

from flatten_det.attention import focused_linear_attention, gpu
from flatten_det.attention.gpu.plan import Plan

EPS = 1e-6


class Case(NamedTuple):
    """Arguments of one attention; tensors in the order of ``NAMES``."""

    tensors: list[Tensor | None]
    num_heads: int
    hw_shape: tuple[int, int]
    grad: Tensor


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


def run_reference(case: Case) -> Results:
    """The reference in float64."""
    tensors = [None if x is None else x.detach().double().requires_grad_() for x in case.tensors]
    out = focused_linear_attention(
        **dict(zip(NAMES, tensors, strict=True)),
        num_heads=case.num_heads,
        hw_shape=case.hw_shape,
        eps=EPS,
    )
    present = [x for x in tensors if x is not None]
    grads = iter(torch.autograd.grad(out, present, case.grad.double()))
    return Results(out.detach(), [None if x is None else next(grads) for x in tensors])


def run_kernels(case: Case, plan: Plan | None = None) -> Results:
    """The kernels, asked for every gradient there is."""
    sizes = (case.num_heads, case.hw_shape, EPS)
    out, *saved = gpu.forward(*case.tensors, *sizes, plan=plan)
    needs = tuple(x is not None for x in case.tensors)
    grads = gpu.backward(case.grad, *case.tensors, *saved, *sizes, needs, plan=plan)
    return Results(out, list(grads))


def check(case: Case, plan: Plan | None = None) -> None:
    """Values and all gradients of the kernels against the reference, by relative error of the norm."""
    expected, ours = run_reference(case), run_kernels(case, plan)
    dtype = case.tensors[2].dtype
    pairs = zip(
        ("out", *NAMES), (ours.out, *ours.grads), (expected.out, *expected.grads), strict=True
    )
    errors = {}
    for (name, value, exact), like in zip(pairs, (case.tensors[2], *case.tensors), strict=True):
        if exact is None:
            assert value is None, name
            continue
        assert (value.shape, value.dtype) == (exact.shape, like.dtype), name
        errors[name] = relative_error(value, exact)
    assert all(error <= TOLERANCES[dtype] for error in errors.values()), errors
