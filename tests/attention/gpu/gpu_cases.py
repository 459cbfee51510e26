"""Inputs of the kernels, and the reference in float64 to compare with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from attention_cases import NAMES, TOLERANCES, make_inputs, reference, relative_error
from torch import Tensor

from flatten_det.attention import gpu
from flatten_det.attention.gpu.plan import Plan
from flatten_det.attention.reference import Inputs

EPS = 1e-6


class Case(NamedTuple):
    """Arguments of one attention; tensors in the order of ``NAMES``."""

    tensors: list[Tensor | None]
    num_heads: int
    hw_shape: tuple[int, int]
    grad: Tensor

    def inputs(self, sizes: Tensor | None = None) -> Inputs:
        """As the kernels take them."""
        return Inputs(*self.tensors, self.num_heads, self.hw_shape, eps=EPS, sizes=sizes)


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
    out = reference(
        **dict(zip(NAMES, tensors, strict=True)),
        num_heads=case.num_heads,
        hw_shape=case.hw_shape,
        eps=EPS,
    )
    present = [x for x in tensors if x is not None]
    grads = iter(torch.autograd.grad(out, present, case.grad.double()))
    return Results(out.detach(), [None if x is None else next(grads) for x in tensors])


def run_kernels(
    case: Case, plan: Plan | None = None, valid: Sequence[tuple[int, int]] | None = None
) -> Results:
    """The kernels, asked for every gradient there is; ``valid``: sizes of the maps without padding."""
    inputs = case.inputs(None if valid is None else torch.tensor(valid, dtype=torch.int32))
    out, *saved = gpu.forward(inputs, plan)
    needs = tuple(x is not None for x in case.tensors)
    grads = gpu.backward(case.grad, inputs, *saved, needs, plan)
    return Results(out, list(grads))


def run_reference_on_each(case: Case, valid: Sequence[tuple[int, int]]) -> Results:
    """The reference in float64 for each map alone; zeros in the padding, sums of parameters' gradients."""
    H, W = case.hw_shape
    q = case.tensors[0]
    expected = Results(torch.zeros(q.shape).double(), [None] * len(NAMES))
    for index, (height, width) in enumerate(valid):
        own = torch.arange(H * W).view(H, W)[:height, :width].flatten()

        def cut(x: Tensor) -> Tensor:
            return x[min(index, len(x) - 1), own][None]  # noqa: B023

        alone = run_reference(
            Case(
                [cut(x) if i < 4 and x is not None else x for i, x in enumerate(case.tensors)],
                case.num_heads,
                (height, width),
                cut(case.grad),
            )
        )
        expected.out[index, own] = alone.out[0]
        for i, (x, grad) in enumerate(zip(case.tensors, alone.grads, strict=True)):
            if x is None:
                continue
            if expected.grads[i] is None:
                expected.grads[i] = torch.zeros(x.shape).double()
            if i < 4:
                expected.grads[i][min(index, len(x) - 1), own] += grad[0]
            else:
                expected.grads[i] += grad
    return expected


def check(
    case: Case, plan: Plan | None = None, valid: Sequence[tuple[int, int]] | None = None
) -> None:
    """Values and all gradients of the kernels against the reference, by relative error of the norm."""
    expected = run_reference(case) if valid is None else run_reference_on_each(case, valid)
    ours = run_kernels(case, plan, valid)
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
        if valid is not None and name in ("out", "q", "k", "v"):
            assert not value[exact == 0].any(), name
    assert all(error <= TOLERANCES[dtype] for error in errors.values()), errors
