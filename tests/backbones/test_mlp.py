"""Portions of tokens change nothing."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flatten_det.backbones import mlp
from flatten_det.backbones.block import TransformerBlock


class Identity(nn.Module):
    """An attention that looks at nothing."""

    def forward(self, x, hw_shape):
        return x.clone()


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    monkeypatch.setattr(mlp, "_PORTION", 32 * 20)


def make_block(mlp_conv: bool, drop_path: float = 0.0) -> TransformerBlock:
    torch.manual_seed(0)
    block = TransformerBlock(16, Identity(), 2, drop_path, 1e-6, cp_policy=None, mlp_conv=mlp_conv)
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    return block


@pytest.mark.parametrize("mlp_conv", [False, True])
@pytest.mark.parametrize("hw_shape", [(7, 11), (30, 3), (1, 90), (3, 40)])
def test_portions_equal_the_whole(mlp_conv, hw_shape):
    block = make_block(mlp_conv)
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 16)
    calls = []
    block.mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
    before, whole = x.clone(), block(x, hw_shape)
    assert len(calls) == 1
    calls.clear()
    with torch.no_grad():
        found = block(x, hw_shape)
    assert len(calls) > 1
    torch.testing.assert_close(found, whole.detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


def test_a_dropped_branch_and_an_observed_mlp_stay_whole():
    x = torch.randn(2, 90, 16)
    seen = []
    dropping = make_block(False, drop_path=0.5).train()
    dropping.mlp.fc1.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        dropping(x, (9, 10))
    assert len(seen) == 1
    observed = make_block(False)
    observed.mlp.register_forward_hook(lambda *_: seen.append(2))
    with torch.no_grad():
        observed(x, (9, 10))
    assert seen == [1, 2]


def test_portions_do_not_count_twice():
    block, x = make_block(True), torch.randn(1, 30 * 3, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x, (30, 3))
    assert counter.get_total_flops() == 2 * 90 * (2 * 16 * 32 + 9 * 32)
