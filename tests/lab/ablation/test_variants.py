"""The attention of any config's backbone, exchanged by the name of a variant."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from flatten_det.attention import FocusedLinearAttention
from flatten_det.backbones.softmax_attention import (
    ShiftedWindowAttention,
    SpatialReductionAttention,
)
from flatten_det.errors import UserError
from flatten_det.lab.ablation.grid import make_grid, vary

CONFIGS = Path(__file__).parents[3] / "configs"
QUICKSTART = CONFIGS / "quickstart" / "flatten-pvt-nano_semantic-fpn_shapes.py"
SWIN = CONFIGS / "upernet" / "flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"
DEIT = CONFIGS / "mask_rcnn" / "mask-rcnn_flatten-deit-t_sfp_1x_coco.py"


def _backbone(path: Path, name: str) -> torch.nn.Module:
    cfg = Config.fromfile(path)
    vary(cfg, name, str(path))
    init_default_scope("mmseg")
    with torch.device("meta"):
        return MODELS.build({**cfg.model.backbone, "init_cfg": None})


def _kinds(backbone: torch.nn.Module) -> set[type]:
    return {type(m) for n, m in backbone.named_modules() if n.endswith("attn")}


@pytest.mark.parametrize("path", [QUICKSTART, SWIN, DEIT], ids=["pvt", "swin", "deit"])
@pytest.mark.parametrize(("name", "power", "kernel"), [("p1-k0", 1, 0), ("p2.5-k7", 2.5, 7)])
def test_linear_variants(path, name, power, kernel):
    layers = [m for m in _backbone(path, name).modules() if isinstance(m, FocusedLinearAttention)]
    assert layers
    for layer in layers:
        assert layer.focusing_factor == power
        assert (layer.dwc.kernel_size[0] if layer.dwc is not None else 0) == kernel


def test_softmax_in_all_stages():
    assert _kinds(_backbone(QUICKSTART, "softmax")) == {SpatialReductionAttention}
    assert _kinds(_backbone(SWIN, "softmax")) == {ShiftedWindowAttention}
    assert FocusedLinearAttention not in _kinds(_backbone(DEIT, "softmax"))


def grid_of(config, variants, out, seeds=(0,), **options):
    return make_grid(variants, seeds, CONFIGS / "ablation", out, options, config)


def test_a_grid_of_a_config(tmp_path):
    runs = grid_of(QUICKSTART, ("softmax", "p3-k0"), tmp_path, (0, 1), max_iters=7)
    assert [run.name for run in runs] == [
        *("softmax, seed 0", "p3-k0, seed 0", "softmax, seed 1", "p3-k0, seed 1"),
    ]
    assert all(run.cfg.max_iters == 7 for run in runs)
    assert runs[2].cfg.randomness.seed == 1
    assert runs[1].cfg.model.backbone.kernel_size == 0
    assert "kernel_size" not in runs[0].cfg.model.backbone
    assert len({run.fingerprint for run in runs}) == 4


@pytest.mark.parametrize("name", ["p3", "p3-k5.py", "linear", "p-3-k5"])
def test_names_that_say_no_variant_or_one_twice(name, tmp_path):
    with pytest.raises(UserError, match=f"variant {name} of --config: give p<focusing factor>"):
        grid_of(QUICKSTART, (name,), tmp_path)
    with pytest.raises(UserError, match="variant p3-k5 is given twice"):
        grid_of(QUICKSTART, ("p3-k5", "p3-k5"), tmp_path)


@pytest.mark.parametrize(
    ("base", "backbone"),
    [("_base_ = 'mmseg::_base_/models/fpn_r50.py'\n", "ResNetV1c"), ("", None)],
)
def test_a_backbone_without_such_attention(base, backbone, tmp_path):
    config = tmp_path / "resnet.py"
    config.write_text(f"{base}default_scope = 'mmseg'\n")
    with pytest.raises(UserError, match=f"backbone {backbone} has no focused linear attention"):
        grid_of(config, ("p3-k5",), tmp_path)
