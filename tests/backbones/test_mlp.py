"""Portions of tokens change nothing."""

import pytest
import torch
from attention_cases import randomised, use_tiles_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flatten_det.backbones import blocks
from flatten_det.backbones.blocks import TransformerBlock
from flatten_det.backbones.softmax_attention import SpatialReductionAttention


class Identity(nn.Module):
    """An attention that looks at nothing."""

    def forward(self, x, hw_shape):
        return x.clone()


@pytest.fixture(autouse=True)
def small_portions(monkeypatch):
    use_tiles_of(10, monkeypatch)


def make_block(
    mlp_conv: bool, drop_path: float = 0.0, attn: nn.Module | None = None
) -> TransformerBlock:
    torch.manual_seed(0)
    attn = attn or SpatialReductionAttention(16, 1, sr_ratio=1)
    block = TransformerBlock(16, attn, 2, drop_path, 1e-6, cp_policy=None, mlp_conv=mlp_conv)
    return randomised(block, std=0.5).train()


@pytest.fixture
def portions(monkeypatch):
    """Sizes of the tokens that were added in portions."""
    added = []
    for kind in (blocks.TokenMlp, blocks.DepthwiseMlp):
        inner = kind.add_in_tiles

        def record(self, x, *args, _inner=inner):
            added.append(tuple(x.shape))
            return _inner(self, x, *args)

        monkeypatch.setattr(kind, "add_in_tiles", record)
    return added


class Square(nn.Module):
    """An activation of somebody else's."""

    def forward(self, x):
        return x.square()


@pytest.mark.parametrize("mlp_conv", [False, True])
@pytest.mark.parametrize("act", [nn.GELU(), nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("hw_shape", [(7, 11), (30, 3), (1, 90), (3, 40)])
def test_portions_equal_the_whole(mlp_conv, act, hw_shape, portions):
    block = make_block(mlp_conv)
    block.mlp.act = act
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 16)
    before, whole = x.clone(), block(x, hw_shape)
    assert not portions
    with torch.no_grad():
        found = block(x, hw_shape)
    assert portions == [x.shape]
    torch.testing.assert_close(found, whole.detach(), rtol=1e-4, atol=1e-4)
    assert torch.equal(x, before)


def test_portions_under_autocast():
    block, x = make_block(False), torch.randn(2, 90, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = block(x, (9, 10))
        block.mlp.register_forward_hook(lambda *_: None)
        whole = block(x, (9, 10))
    torch.testing.assert_close(found, whole, rtol=1e-2, atol=1e-2)


def test_what_is_not_plain_stays_whole(portions):
    x = torch.randn(2, 90, 16)
    dropping, observed, inside, others, elsewhere, wider = (
        make_block(False, drop_path=0.5),
        make_block(False),
        make_block(False),
        make_block(False),
        make_block(False, attn=Identity()),
        make_block(True),
    )
    # Monte Carlo dropout: the rest of the block is in evaluation mode.
    dropping.eval().drop_path.train()
    others.mlp.act = Square()
    wider.mlp.dwconv = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32)
    seen = []
    observed.mlp.register_forward_hook(lambda *_: seen.append("mlp"))
    inside.mlp.fc1.register_forward_hook(lambda *_: seen.append("fc1"))
    with torch.no_grad():
        for block in (dropping, observed, inside, others, elsewhere, wider):
            block(x, (9, 10))
    assert seen == ["mlp", "fc1"]
    assert not portions


def test_portions_do_not_count_twice():
    block, x = make_block(True, attn=Identity()), torch.randn(1, 30 * 3, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x, (30, 3))
    assert counter.get_total_flops() == 2 * 90 * (2 * 16 * 32 + 9 * 32)
