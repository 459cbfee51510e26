"""The paper's ablation on DeiT-T: attention exchanged in one network, and the ranks of its third block."""

import pytest
import torch

from flatten_det.attention import FocusedLinearAttention
from flatten_det.backbones.weights import load_backbone
from flatten_det.errors import UserError
from flatten_det.lab.analysis.layers import attention_layers, capture, choose_layers
from flatten_det.lab.analysis.measure import LayerResult, Measures, measure_layer
from flatten_det.lab.analysis.model import DEIT_ABLATION, build_named, named_target


def third_block(name: str, sharpness: float = 1.0) -> LayerResult:
    torch.manual_seed(0)
    backbone = build_named(name).eval()
    for key, parameter in backbone.named_parameters():
        if key.endswith((".qkv.weight", ".q.weight", ".kv.weight")):
            parameter.data *= sharpness
    layers = choose_layers(attention_layers(backbone), ["1.3"])
    (call,) = capture(backbone, layers, torch.randn(1, 3, 224, 224))
    return measure_layer(call, Measures(None, True, 1))


@pytest.mark.parametrize(("name", "power", "kernel_size"), [("deit-t-linear", 1, 0),
                         ("deit-t-focused", 3, 0), ("deit-t-focused-dwc", 3, 5)])  # fmt: skip
def test_names_say_what_the_attention_is(name, power, kernel_size):
    layers = [m for m in build_named(name).modules() if isinstance(m, FocusedLinearAttention)]
    assert len(layers) == 12
    assert all(layer.focusing_factor == power for layer in layers)
    assert all((layer.dwc.kernel_size[0] if layer.dwc else 0) == kernel_size for layer in layers)


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("deit-t-softmax", range(196, 197)),
        ("deit-t-linear", range(1, 65)),
        ("deit-t-focused", range(1, 65)),
        ("deit-t-focused-dwc", range(196, 197)),
    ],
)
def test_ranks_are_the_papers(name, ranks):
    """196, at most d = 64 (54 with the paper's weights), 196. Softmax needs weights that differ."""
    result = third_block(name, sharpness=5)
    assert result.error < 1e-5
    (own,) = (v for v in result.variants if v.record()["is_the_layers_own"])
    assert len(own.spectra) == 3
    assert all(s.spectrum.rank in ranks for s in own.spectra)
    assert all(s.spectrum.shape == (196, 196) for s in own.spectra)


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


def test_unknown_names():
    with pytest.raises(UserError, match=r"did you mean deit-t-linear\? Names are flatten-pvt-t, "):
        named_target("deit-t-linar")
