"""What the operators do with the kernels: the same as on the CPU, in memory of their own."""

import pytest
import torch
from attention_cases import make_inputs, randomised, relative_error
from nano_backbones import NANO

from flatten_det.attention import FocusedLinearAttention, module, ops
from flatten_det.attention.dispatch import TRITON
from flatten_det.backbones import FLattenPVT
from flatten_det.backbones.base import fill_padding


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


def test_a_layer_with_padding(interpreter, monkeypatch):
    """Values and gradients of each map are those of the map alone, by what the CPU has."""
    hw_shape, sizes = (4, 5), [(4, 3), (2, 5)]
    layer = randomised(FocusedLinearAttention(16, 1, (3, 2), kernel_size=3), std=0.5)
    x, grad = torch.randn(2, 2, 20, 16).unbind()
    _, (padding,) = fill_padding(torch.zeros(2, 3, *hw_shape), sizes, (1,), [(3, 2)])
    parameters, valid = list(layer.parameters()), [~mask.flatten() for mask in padding.mask]
    alone = [layer(x[i, v][None], sizes[i]) for i, v in enumerate(valid)]
    expected = torch.autograd.grad(
        alone, parameters, [grad[i, v][None] for i, v in enumerate(valid)]
    )
    with monkeypatch.context() as patch:
        patch.setattr(module, "choose", lambda *_, **__: TRITON)
        out = layer(x, hw_shape, padding)
        with torch.no_grad():
            assert layer(x, hw_shape, padding).equal(out)
        found = torch.autograd.grad(out, parameters, grad.masked_fill(padding.mask, 0))
    for i, own in enumerate(alone):
        assert relative_error(out[i, valid[i]], own[0]) < 1e-5
    for one, other in zip(found, expected, strict=True):
        assert relative_error(one, other) < 1e-4


@pytest.mark.slow
def test_a_backbone_with_padding(interpreter, monkeypatch):
    """All images in one pass by the kernels, and each alone by what the CPU has."""
    arch = NANO["FLattenPVT"] | dict(depths=(1, 1, 1, 1))
    backbone = randomised(FLattenPVT(arch, out_indices=(0, 1)))
    images, sizes = torch.randn(2, 3, 40, 48), [(40, 20), (23, 48)]
    alone = [backbone(images[i : i + 1, :, :h, :w]) for i, (h, w) in enumerate(sizes)]
    parameters = list(backbone.parameters())
    with monkeypatch.context() as patch:
        patch.setattr(module, "choose", lambda *_, **__: TRITON)
        together = backbone.forward_images(images, sizes)
        found = torch.autograd.grad(sum(x.square().sum() for x in together), parameters)
    expected = torch.autograd.grad(sum(x.square().sum() for y in alone for x in y), parameters)
    for i, maps in enumerate(alone):
        for padded, own in zip(together, maps, strict=True):
            assert relative_error(padded[i, :, : own.shape[2], : own.shape[3]], own[0]) < 1e-5
            assert padded[i].count_nonzero() == own.count_nonzero()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5


def test_the_cpu_takes_no_padding():
    tensors = list(make_inputs((5, 7), 2, 16).values())
    sizes = torch.tensor([[5, 7], [3, 7]], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="padding"):
        ops.attention(*tensors, None, 2, 5, 7, 1e-6, sizes)


def test_folded_projections_are_refused():
    with pytest.raises(NotImplementedError, match="no floor"):
        ops._attention_cuda(*[None] * 7, torch.ones(32), 2, 5, 7, 1e-6)
