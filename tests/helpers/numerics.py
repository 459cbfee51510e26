"""What the numerics sheets of all levels share: weights, precisions, and the error against float64.

Nothing is closer to float64 than the problem allows. So an error is allowed to be a constant of the
precision, plus a multiple of what rounding inputs and weights once to that precision does to the exact
result. It is measured for outputs one by one, and for all gradients together: gradients of queries and keys
may cancel to nothing, as under a softmax that has decided.
"""

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from golden_values import as_trained
from torch import Tensor, nn

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Relative errors of the norm: of outputs, and of the gradients taken together.
TOLERANCES = {"fp32": (1e-5, 1e-4), "bf16": (2e-2, 6e-2), "fp16": (3e-3, 1e-2)}
# In roundings of inputs and weights.
ROUNDINGS = 20
LOSS_SCALES = [2.0**power for power in (16, 12, 8, 4, 0)]

# The outputs of a module for given inputs.
Compute = Callable[[nn.Module, Tensor], list[Tensor]]


def with_weights(module: nn.Module) -> nn.Module:
    """Random weights of the sizes that training leads to; no parameter is without effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(as_trained(name, noise))
    return module


def with_slow(fast: Sequence[float], slow: Sequence[float]) -> list:
    """Values of a test parameter; those of the second list are for the slow tests."""
    return [*fast, *(pytest.param(value, marks=pytest.mark.slow) for value in slow)]


def check_numerics(
    module: nn.Module, inputs: Tensor, precision: str, compute: Compute, known_loss: float = 0.0
) -> None:
    """Outputs and gradients are finite, and as close to float64 as they can be.

    Args:
        module: with parameters in float32.
        inputs: in float32.
        precision: one of ``PRECISIONS``; others than fp32 are computed under autocast.
        compute: the outputs of a module for inputs.
        known_loss: a further relative error of the gradients that is nobody's fault here.
    """
    dtype = PRECISIONS[precision]
    exact_module = copy.deepcopy(module).double()
    exact = _differentiate(exact_module, inputs.double(), compute)
    rounded = _rounded(exact_module, dtype)
    moved = _differentiate(rounded, inputs.to(dtype).double(), compute)

    def cast(module: nn.Module, inputs: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", dtype, enabled=precision != "fp32"):
            return compute(module, inputs)

    for scale in LOSS_SCALES if precision == "fp16" else [1.0]:
        found = _differentiate(module, inputs, cast, scale)
        if all(gradient.isfinite().all() for gradient in found[1]):
            break
    of_outputs, of_gradients = TOLERANCES[precision]
    for number, output in enumerate(found[0]):
        assert output.isfinite().all(), f"output {number}"
        own = relative_error([moved[0][number]], [exact[0][number]])
        error = relative_error([output], [exact[0][number]])
        assert error <= of_outputs + ROUNDINGS * own, f"output {number}: {error:.1e}, {own:.1e}"
    names = ["the inputs", *(name for name, _ in module.named_parameters())]
    bad = [n for n, g in zip(names, found[1], strict=True) if not g.isfinite().all()]
    assert not bad
    own, error = relative_error(moved[1], exact[1]), relative_error(found[1], exact[1])
    allowed = of_gradients + known_loss + ROUNDINGS * own
    assert error <= allowed, f"gradients: {error:.1e}, {own:.1e}"


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """Of the norm of all of them together; the absolute one where nothing is expected."""

    def norm(tensors: list[Tensor]) -> float:
        return torch.stack([tensor.double().norm() for tensor in tensors]).norm().item()

    differences = [a.double() - b.double() for a, b in zip(found, expected, strict=True)]
    return norm(differences) / (norm(expected) or 1.0)


def _rounded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            if dtype == torch.float32:  # Weights have that precision already.
                signs = torch.where(parameter > parameter.mean(), 1.0, -1.0)
                parameter.mul_(1 + 2.0**-24 * signs)
            parameter.copy_(parameter.to(dtype))
    return module


def _differentiate(
    module: nn.Module, inputs: Tensor, compute: Compute, scale: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and, for a mean over them, the gradients of inputs and parameters."""
    inputs = inputs.clone().requires_grad_()
    outputs = compute(module, inputs)
    generator = torch.Generator().manual_seed(2)
    loss = 0.0
    for output in outputs:
        weights = torch.randn(output.shape, generator=generator).to(output.device)
        full = torch.promote_types(output.dtype, torch.float32)
        loss = loss + (output.to(full) * weights).mean()
    leaves = [inputs, *module.parameters()]
    gradients = torch.autograd.grad(loss * scale, leaves, allow_unused=True)
    found = [
        torch.zeros_like(leaf) if gradient is None else gradient / scale
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return [output.detach() for output in outputs], found
