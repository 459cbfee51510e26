"""The paper's ablation on DeiT-T: attention exchanged in one network, and the ranks of its third block."""

import pytest
import torch

from flatten_det.attention import FocusedLinearAttention
from flatten_det.backbones.weights import load_backbone
from flatten_det.lab.analysis.layers import attention_layers, capture, choose_layers
from flatten_det.lab.analysis.measure import Measures, measure_layer
from flatten_det.lab.analysis.model import DEIT_ABLATION, build_named


@pytest.mark.parametrize(("name", "power", "kernel_size"), [("deit-t-linear", 1, 0),
                         ("deit-t-focused", 3, 0), ("deit-t-focused-dwc", 3, 5)])  # fmt: skip
def test_names_say_what_the_attention_is(name, power, kernel_size):
    layers = [m for m in build_named(name).modules() if isinstance(m, FocusedLinearAttention)]
    assert len(layers) == 12
    assert all(layer.focusing_factor == power for layer in layers)
    assert all((layer.dwc.kernel_size[0] if layer.dwc else 0) == kernel_size for layer in layers)


@pytest.mark.parametrize("name", DEIT_ABLATION)
def test_ranks_are_the_papers(name):
    """196, at most d = 64 (54 with the paper's weights), 196. Softmax needs weights that differ."""
    torch.manual_seed(0)
    backbone = build_named(name).eval()
    for key, parameter in backbone.named_parameters():
        if key.endswith((".qkv.weight", ".q.weight", ".kv.weight")):
            parameter.data *= 5
    layers = choose_layers(attention_layers(backbone), ["1.3"])
    (call,) = capture(backbone, layers, torch.randn(1, 3, 224, 224))
    result = measure_layer(call, Measures())
    assert result.error < 1e-5
    (own,) = (variant for variant in result.variants if variant.is_own)
    ranks = [s.spectrum.rank for s in own.spectra]
    assert [s.spectrum.shape for s in own.spectra] == [(196, 196)] * 3
    assert max(ranks) <= 64 if name in ("deit-t-linear", "deit-t-focused") else ranks == [196] * 3


def test_all_take_the_weights_of_one_deit():
    deit = build_named("deit-t-softmax")
    state = {}
    for name, value in deit.state_dict().items():
        key = name.replace(".q.", ".qkv.")
        if ".kv." in name:
            key = name.replace(".kv.", ".qkv.")
            value = torch.cat([state[key], value])
        state[key] = value
    state["cls_token"] = torch.zeros(1, 1, 192)
    state["pos_embed"] = torch.cat([state["cls_token"], state["pos_embed"]], dim=1)
    for name in DEIT_ABLATION:
        backbone = build_named(name)
        report = load_backbone(backbone, state, "deit.pth")
        assert report.dropped == ["cls_token"]
        assert torch.equal(backbone.blocks[2].attn.proj.weight, deit.blocks[2].attn.proj.weight)
