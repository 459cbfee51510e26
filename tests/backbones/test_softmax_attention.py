"""The softmax blocks against direct formulas, and against timm's Swin and mmdet's PVT attention."""

from contextlib import contextmanager

import pytest
import timm
import torch
from attention_cases import randomised
from mmdet.models.backbones.pvt import SpatialReductionAttention as MmdetAttention
from mmdet.models.backbones.swin import ShiftWindowMSA
from timm.models.swin_transformer import SwinTransformer

from flatten_det.attention.eager import keeping_nothing
from flatten_det.backbones import FLattenPVTv2, FLattenSwin, softmax_attention
from flatten_det.backbones.softmax_attention import (
    CrossShapedAttention,
    ShiftedWindowAttention,
    SpatialReductionAttention,
)


@pytest.mark.parametrize("sr_ratio", [1, 2])
def test_spatial_reduction_attention_equals_mmdets(sr_ratio):
    ours = randomised(SpatialReductionAttention(16, 2, sr_ratio))
    theirs = MmdetAttention(16, 2, sr_ratio=sr_ratio, qkv_bias=True, batch_first=True).eval()
    theirs.attn.in_proj_weight.data = torch.cat([ours.q.weight, ours.kv.weight])
    theirs.attn.in_proj_bias.data = torch.cat([ours.q.bias, ours.kv.bias])
    theirs.attn.out_proj.load_state_dict(ours.proj.state_dict())
    if sr_ratio > 1:
        theirs.sr.load_state_dict(ours.sr.state_dict())
        theirs.norm.load_state_dict(ours.norm.state_dict())
    x = torch.randn(2, 48, 16)
    expected = theirs(x, (6, 8), identity=torch.zeros_like(x))
    torch.testing.assert_close(ours(x, (6, 8)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(224, 224), (224, 448)])
def test_softmax_swin_equals_timms(size):
    """A whole Swin of four softmax stages; 224 x 448 ends in a map of 7 x 14."""
    ours = FLattenSwin(
        arch=dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)), attn_types="SSSS"
    )
    randomised(ours)
    theirs = SwinTransformer(
        img_size=size, embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_classes=0
    ).eval()
    state = {}
    for name, value in ours.state_dict().items():
        # timm counts the downsampling to the stage that follows it.
        if ".downsample." in name:
            stage = int(name.split(".")[1])
            name = name.replace(f"layers.{stage}.", f"layers.{stage + 1}.")
        name = name.replace("norm3.", "norm.")
        if not name.startswith(("norm0", "norm1", "norm2")) and "bias_index" not in name:
            state[name] = value
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("relative_position_index" in m or "attn_mask" in m for m in missing)
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_features(image).permute(0, 3, 1, 2)
        out = ours(image)[-1]
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_softmax_pvt_v2_equals_timms():
    ours = randomised(FLattenPVTv2(attn_types="SSSS"))
    theirs = timm.create_model("pvt_v2_b0", num_classes=0).eval()
    state = {}
    for name, value in ours.state_dict().items():
        # timm counts stages from 0 and keeps what belongs to one together.
        root, rest = name.split(".", 1)
        kind, stage = root[:-1], int(root[-1]) - 1
        inner = {"block": "blocks", "norm": "norm", "patch_embed": "downsample"}[kind]
        is_stem = kind == "patch_embed" and stage == 0
        name = f"patch_embed.{rest}" if is_stem else f"stages.{stage}.{inner}.{rest}"
        state[name] = value
    theirs.load_state_dict(state)
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        expected, out = theirs.forward_features(image), ours(image)[-1]
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("hw_shape", [(6, 8), (7, 9), (2, 11), (3, 3)])
def test_cross_shaped_attention_equals_padded_and_masked_stripes(hw_shape):
    """Every query attends to the keys of its own stripe, one stripe at a time, in plain loops."""
    H, W = hw_shape
    split, heads, C = 4, 4, 16
    ours = randomised(CrossShapedAttention(C, heads, split))
    x = torch.randn(2, H * W, C)
    qkv = ours.qkv(x).view(2, H, W, 3, C)
    expected = torch.zeros(2, H, W, C)
    for branch, (rows, cols) in enumerate([(H, split), (split, W)]):
        half = slice(branch * C // 2, (branch + 1) * C // 2)
        for top in range(0, H, rows):
            for left in range(0, W, cols):
                stripe = (slice(None), slice(top, top + rows), slice(left, left + cols))
                q, k, v = (qkv[(*stripe, i, half)] for i in range(3))
                out = ours.lepe[branch](v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).clone()
                for head in range(heads // 2):
                    own = slice(head * C // heads, (head + 1) * C // heads)
                    scores = torch.einsum("bhwc,bijc->bhwij", q[..., own], k[..., own]) / 2
                    weights = scores.flatten(3).softmax(-1).view_as(scores)
                    out[..., own] += torch.einsum("bhwij,bijc->bhwc", weights, v[..., own])
                expected[(*stripe, half)] = out
    expected = ours.proj(expected.view(2, H * W, C))
    torch.testing.assert_close(ours(x, hw_shape), expected, rtol=1e-4, atol=1e-4)


def test_cross_shaped_attention_without_stripes_is_global():
    layer = randomised(CrossShapedAttention(8, 2, split_size=None))
    x = torch.randn(1, 30, 8)
    moved = x.clone()
    moved[0, -1] += 1
    assert ((layer(moved, (5, 6)) - layer(x, (5, 6))).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize("shift_size", [0, 2])
@pytest.mark.parametrize("hw_shape", [(8, 12), (9, 6), (5, 15)])
def test_shifted_windows_equal_mmdets(shift_size, hw_shape):
    """Maps that the window does not divide are padded before the shift."""
    ours = randomised(ShiftedWindowAttention(8, 2, window_size=4, shift_size=shift_size))
    theirs = ShiftWindowMSA(8, 2, window_size=4, shift_size=shift_size).eval()
    state = {f"w_msa.{n}": v for n, v in ours.state_dict().items() if n != "bias_index"}
    theirs.load_state_dict(state, strict=False)
    # mmdet numbers the rows of its table in another order.
    size = 2 * 4 - 1
    bias = ours.relative_position_bias_table[ours.bias_index]
    index = theirs.w_msa.relative_position_index
    table = torch.zeros(size * size, 2)
    table[index.flatten()] = bias.flatten(0, 1)
    theirs.w_msa.relative_position_bias_table.data = table
    x = torch.randn(2, hw_shape[0] * hw_shape[1], 8)
    torch.testing.assert_close(ours(x, hw_shape), theirs(x, hw_shape), rtol=1e-4, atol=1e-5)


def test_shift_only_along_axes_that_need_it():
    """On a map one window high, a shift may only mix neighbours along the width."""
    layer = randomised(ShiftedWindowAttention(8, 2, window_size=4, shift_size=2))
    x = torch.randn(1, 4 * 8, 8)
    out = layer(x, (4, 8))
    changed = x.view(1, 4, 8, 8).clone()
    changed[:, 3, 5] += 1  # columns 2 to 5 form the middle window after the shift
    moved = (layer(changed.view(1, 32, 8), (4, 8)) - out).view(4, 8, 8).abs().amax(-1) > 1e-6
    assert moved[:, 2:6].all()
    assert not moved[:, :2].any()
    assert not moved[:, 6:].any()


@pytest.fixture(params=["to be captured", "captured"])
def capture(request, monkeypatch):
    """What a CUDA graph is made of: by us, or by somebody who captures."""
    if request.param == "to be captured":
        return keeping_nothing

    @contextmanager
    def capturing():
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            yield

    return capturing


def mask(width: int) -> torch.Tensor:
    return softmax_attention.shift_mask((8, width), 4, (2, 2), torch.device("cpu"))


def test_masks_are_kept_but_large_ones(monkeypatch):
    assert mask(8) is mask(8)
    monkeypatch.setattr(softmax_attention, "_LARGEST", 1023)
    assert mask(8) is not mask(8)


def test_a_graph_has_masks_of_its_own(capture):
    """Replays would read what was dropped and given to others, and others what only replays write."""
    kept = mask(8)
    with capture():
        assert mask(8) is not kept
        first = mask(20)
    assert mask(8) is kept
    assert mask(20) is not first


def test_inference_tensors_are_not_kept():
    with torch.inference_mode():
        mask(24)
    assert not mask(24).is_inference()
