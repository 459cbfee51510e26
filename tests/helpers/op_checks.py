"""What the tests of mmcv's ops share: an op's values and gradients are those of a plain version."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_same_with_gradients(
    actual: Tensor, expected: Tensor, inputs: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Compare outputs, and the gradients of the inputs; returns the upstream gradient and these."""
    torch.testing.assert_close(actual, expected)
    upstream = torch.rand(expected.shape, dtype=expected.dtype)
    found, wanted = (torch.autograd.grad(out, inputs, upstream) for out in (actual, expected))
    torch.testing.assert_close(found, wanted)
    return upstream, wanted


def check_rounded_once(
    op: Callable[..., Tensor], inputs: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """In half precision, outputs and gradients are those in float32, rounded."""
    half = [x.detach().to(dtype).requires_grad_() for x in inputs]
    single = [x.detach().float().requires_grad_() for x in half]
    outputs = [op(*half), op(*single)]
    for output in outputs:
        output.sum().backward()
    assert torch.equal(outputs[0], outputs[1].to(dtype))
    assert all(torch.equal(a.grad, b.grad.to(dtype)) for a, b in zip(half, single, strict=True))
