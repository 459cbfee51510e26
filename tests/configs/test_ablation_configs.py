"""The ablations' models differ as their names say, and need attention for their task."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from flatten_det.attention import FocusedLinearAttention
from flatten_det.attention import module as attention_module
from flatten_det.attention.maps import as_image, as_tokens
from flatten_det.backbones.softmax_attention import SpatialReductionAttention
from flatten_det.data.shapes.options import LEGEND_HEIGHT

FOLDER = Path(__file__).parents[2] / "configs" / "ablation"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def _model(name: str) -> torch.nn.Module:
    cfg = Config.fromfile(FOLDER / f"{name}.py")
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model.eval()


def test_the_variants_are_complete():
    assert set(NAMES) == {
        "softmax",
        *(f"p{p}-k{k}" for p, k in [(1, 0), (3, 0), (3, 3), (3, 7)]),
        *(f"p{p}-k5" for p in (1, 2, 3, 4, 8)),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_variant_is_what_its_name_says(name):
    layers = [m for m in _model(name).modules() if hasattr(m, "sr_ratio")]
    assert len(layers) == 2
    for layer in layers:
        # All variants attend to the same tokens.
        assert layer.sr_ratio == 1
        if name == "softmax":
            assert isinstance(layer, SpatialReductionAttention)
        else:
            assert isinstance(layer, FocusedLinearAttention)
            kernel = layer.dwc.kernel_size[0] if layer.dwc is not None else 0
            assert f"p{layer.focusing_factor}-k{kernel}" == name


def _change_below_a_changed_legend(model: torch.nn.Module, top: int) -> float:
    """Largest change of the logits of rows from ``top`` on when the legend is another one."""
    torch.manual_seed(1)
    image = torch.randn(1, 3, 128, 64)
    other = image.clone()
    other[:, :, :LEGEND_HEIGHT] = torch.randn(1, 3, LEGEND_HEIGHT, 64)
    with torch.no_grad():
        outs = [
            torch.nn.functional.interpolate(model(x, mode="tensor"), (128, 64), mode="bilinear")
            for x in (image, other)
        ]
    return (outs[0] - outs[1])[:, :, top:].abs().max().item()


@pytest.mark.parametrize("name", ["p1-k0", "p3-k5", "p3-k7", "softmax"])
def test_only_attention_reaches_the_objects(name, monkeypatch):
    """Neither convolutions nor norms tell a pixel of an object anything about the legend."""
    shapes = Config.fromfile(FOLDER / f"{name}.py").shapes
    top = LEGEND_HEIGHT + shapes.legend_distance
    model = _model(name)
    assert _change_below_a_changed_legend(model, top) > 1e-4

    def convolution_alone(choice, inputs):
        _, _, v, _, _, dwc_weight, dwc_bias, num_heads, hw_shape, *_ = inputs
        if dwc_weight is None:
            return torch.zeros_like(v)
        heads = as_image(v, hw_shape).unflatten(1, (num_heads, -1)).flatten(0, 1)
        size = dwc_weight.shape[-1]
        out = torch.nn.functional.conv2d(
            heads, dwc_weight, dwc_bias, padding=size // 2, groups=len(dwc_weight)
        )
        return as_tokens(out.unflatten(0, (-1, num_heads)).flatten(1, 2))

    monkeypatch.setattr(attention_module, "run", convolution_alone)
    monkeypatch.setattr(
        FocusedLinearAttention, "_could_be_one_operator", lambda self, x, dtype: False
    )
    monkeypatch.setattr(
        SpatialReductionAttention, "forward", lambda self, x, hw_shape: torch.zeros_like(x)
    )
    assert _change_below_a_changed_legend(model, top) == 0
    # The measure itself is not blind: nearer rows do see it.
    assert _change_below_a_changed_legend(model, 0) > 1e-4
