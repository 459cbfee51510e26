"""Portions of tokens change nothing."""

import pytest
import torch
from timm.layers import Mlp
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flatten_det.backbones import mlp
from flatten_det.backbones.mlp import DepthwiseMlp, TokenMlp


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(mlp, "_PORTION", 32 * 20)


def test_token_mlp():
    model, plain = TokenMlp(16, 32), Mlp(16, 32)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 7 * 11, 16)
    calls = []
    model.fc1.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain(x))
    assert len(calls) == 8
    calls.clear()
    torch.testing.assert_close(model(x), plain(x))
    assert len(calls) == 1


@pytest.mark.parametrize("hw_shape", [(7, 11), (30, 3), (1, 90), (3, 40)])
def test_depthwise_mlp(hw_shape):
    model = DepthwiseMlp(16, 32)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 16)
    whole = model(x, hw_shape)
    with torch.no_grad():
        torch.testing.assert_close(model(x, hw_shape), whole.detach(), rtol=1e-4, atol=1e-4)


def test_portions_do_not_count_twice():
    model, x = DepthwiseMlp(16, 32), torch.randn(1, 30 * 3, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x, (30, 3))
    assert counter.get_total_flops() == 2 * 90 * (2 * 16 * 32 + 9 * 32)
