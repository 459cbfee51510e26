"""What the operators do with the kernels: the same as on the CPU, in memory of their own."""

import pytest
import torch
from attention_cases import make_inputs, relative_error

from flatten_det.attention import ops


@pytest.mark.parametrize("positions_of_each_map", [False, True])
def test_operators(interpreter, positions_of_each_map):
    inputs = make_inputs((5, 7), 2, 16)
    if positions_of_each_map:
        inputs["positions"] = inputs["positions"] + torch.randn(2, 35, 32)
    tensors, settings = list(inputs.values()), (2, 5, 7, 1e-6)
    found = ops._attention_cuda(*tensors, None, *settings)
    expected = ops.attention(*tensors, None, *settings)
    assert relative_error(found[0], expected[0]) < 1e-5
    grad, needs = torch.randn(2, 35, 32), [True] * 7
    gradients = ops._attention_backward_cuda(grad, *tensors, *found[1:], *settings, needs)
    others = ops.attention_backward(grad, *tensors, *expected[1:], *settings, needs)
    for one, other in zip(gradients, others, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert relative_error(one, other) < 1e-5
    results = [*found, *gradients]
    assert len({x.untyped_storage().data_ptr() for x in results}) == len(results)


def test_folded_projections_are_refused():
    with pytest.raises(NotImplementedError, match="no floor"):
        ops._attention_cuda(*[None] * 7, torch.ones(32), 2, 5, 7, 1e-6)
