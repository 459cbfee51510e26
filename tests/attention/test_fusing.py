"""``fuse_for_inference``: the same function, reversible, and never stale."""

import pytest
import torch
from attention_cases import make_layer, randomised, relative_error
from nano_backbones import NANO, build_nano
from torch import nn


@pytest.mark.parametrize("implementation", ["tiled", "plain", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fused_qkv": False},
        {"qkv_bias": False},
        {"lepe_kernel_size": 3},
        {"window_size": 4},
        {"sr_ratio": 2, "fused_qkv": False},
    ],
)
def test_same_function(options, implementation, monkeypatch):
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", implementation)
    layer, x = make_layer(**options), torch.randn(2, 70, 32)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    with torch.no_grad():
        before = layer(x, (7, 10))
        layer.fuse_for_inference()
        assert layer.is_fused
        fused = layer(x, (7, 10))
        assert layer.state_dict().keys() == state.keys()
        assert all(torch.equal(layer.state_dict()[name], value) for name, value in state.items())
        layer.unfuse()
        assert not layer.is_fused
        assert torch.equal(layer(x, (7, 10)), before)
    assert relative_error(fused, before) < 1e-6


def test_other_weights_are_folded_however_they_were_written(monkeypatch):
    monkeypatch.setenv("FLATTEN_DET_ATTENTION", "reference")
    layer, other, x = make_layer(), make_layer(), torch.randn(1, 30, 32)
    nn.init.normal_(other.qkv.weight)
    layer.fuse_for_inference()
    with torch.no_grad():
        layer(x, (6, 5))
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x, (6, 5)), other(x, (6, 5)), rtol=1e-4, atol=1e-5)
        for weights in (layer, other):
            weights.scale.data.add_(1)
        torch.testing.assert_close(layer(x, (6, 5)), other(x, (6, 5)), rtol=1e-4, atol=1e-5)
        assert layer.double()(x.double(), (6, 5)).dtype == torch.float64


def test_training_ends_it_and_gradients_flow():
    layer, x = make_layer(), torch.randn(1, 30, 32)
    layer.fuse_for_inference()
    layer(x, (6, 5)).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    layer.train()
    assert not layer.is_fused


@pytest.mark.parametrize("family", NANO)
def test_backbones(family):
    backbone = randomised(build_nano(family), std=0.1)
    image = torch.randn(1, 3, 75, 110)
    with torch.no_grad():
        before = backbone(image)
        backbone.fuse_for_inference()
        fused = backbone(image)
        backbone.unfuse()
        again = backbone(image)
    for a, b, c in zip(before, fused, again, strict=True):
        assert relative_error(b, a) < 1e-5
        assert torch.equal(a, c)
