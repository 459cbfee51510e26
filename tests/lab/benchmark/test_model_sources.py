"""Models by name: what is built, what is counted, and one line for what there is not."""

from pathlib import Path

import pytest
import timm.layers
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.registry import DefaultScope
from torchvision.ops import StochasticDepth

from flatten_det.errors import UserError
from flatten_det.lab.benchmark import models
from flatten_det.lab.benchmark.models import count_cost
from flatten_det.lab.benchmark.run import Setting
from flatten_det.lab.benchmark.sources import (
    MMDET,
    Size,
    Source,
    find_size,
    find_source,
    short_name,
)
from flatten_det.lab.complexity import count_macs

CONFIGS = Path(__file__).parents[3] / "configs"
MASK_RCNN = CONFIGS / "quickstart" / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py"
SIZE = Size(64, 96)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("flatten-pvtv2-b0", 4),
        ("mmdet:pvtv2-b0", 4),
        ("mmdet:swin-t", 4),
        pytest.param("mmdet:resnet-50", 4, marks=pytest.mark.slow),
        ("timm:swin_tiny_patch4_window7_224", 4),
        pytest.param("timm:pvt_v2_b0", 4, marks=pytest.mark.slow),
        ("torchvision:swin_t", 1),
        ("torchvision:resnet18", 4),
    ],
)
def test_backbones_take_the_size_they_are_built_for(name, maps):
    source = find_source(name)
    assert not source.whole
    model = source.build(SIZE)
    assert name.startswith("mmdet:") == type(model).__module__.startswith("mmdet.")
    model.eval()
    assert all(parameter.requires_grad for parameter in model.parameters())
    dropping = [m for m in model.modules() if isinstance(m, timm.layers.DropPath | DropPath)]
    assert not any(m.drop_prob for m in dropping)
    assert not any(m.p for m in model.modules() if isinstance(m, StochasticDepth))
    images = torch.rand(1, 3, *SIZE.hw)
    with torch.no_grad():
        outputs = model(images)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else outputs
    assert len(outputs) == maps
    # At stride 32 in the end, whether channels come first or last.
    assert {2, 3} <= set(outputs[-1].shape)
    cost = count_cost(name, SIZE)
    assert cost.note is None
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.macs == count_macs(model, lambda: model(images)).macs


def test_mmdet_names_are_its_own_backbones():
    # Whatever was built before.
    with DefaultScope.overwrite_default_scope("mmengine"):
        backbone = find_source("mmdet:pvt-t").build(SIZE)
    assert type(backbone).__module__.startswith("mmdet.")
    # Published parameters in M, of the classification models without the head.
    published = {"pvt-s": 23.98, "pvtv2-b1": 13.50, "swin-s": 48.84, "resnet-101": 42.50}
    for name, parameters in published.items():
        found = count_cost(f"mmdet:{name}", SIZE).parameters / 1e6
        assert found == pytest.approx(parameters, abs=0.05), name
    assert len(MMDET) >= 14


def test_whole_models_come_from_configs():
    source = find_source(str(MASK_RCNN))
    assert source.whole
    assert type(source.build(SIZE)).__name__ == "MaskRCNN"
    # Its thousand proposals alone.
    assert count_cost(str(MASK_RCNN), SIZE).macs > 1000 * 64 * 49 * 128


def test_fields_of_configs_can_be_overridden(tmp_path):
    model = f"{MASK_RCNN} model.backbone.with_cp=True model.neck.out_channels=32"
    assert short_name(model) == f"{MASK_RCNN.stem} with_cp=True out_channels=32"
    built = find_source(model).build(SIZE)
    assert built.backbone.block1[0].cp_policy == "block"
    assert built.neck.out_channels == 32
    with_space = tmp_path / "a folder" / "config.py"
    with_space.parent.mkdir()
    with_space.write_text(f"_base_ = {str(MASK_RCNN.resolve())!r}\n")
    assert not find_source(str(with_space)).build(SIZE).backbone.block1[0].cp_policy
    assert short_name(str(with_space)) == "config"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{MASK_RCNN} with_cp", "expected KEY=VALUE"),
        ("flatten-pvt-x", "no such model; give one of flatten_det's.*flatten-pvt-"),
        ("mmdet:swin-x", "of mmdet there are pvt-t.*did you mean"),
        ("timm:convnext_tini", "did you mean convnext_tiny"),
        ("torchvision:swim_t", "did you mean swin_t"),
        ("keras:vgg16", "models come from mmdet, timm, torchvision, not keras"),
    ],
)
def test_unknown_names(name, message):
    with pytest.raises(UserError, match=message):
        find_source(name)


def test_what_cannot_be_counted_has_a_note():
    cost = count_cost("torchvision:vit_b_16", SIZE)
    assert cost.macs is None
    assert "torchvision's vit_b_16 has no part that gives feature maps" in cost.note


def test_operators_that_are_not_counted_are_named(monkeypatch):
    class Spectral(torch.nn.Conv2d):
        def forward(self, x):
            return torch.fft.fft2(super().forward(x)).abs()

    source = Source(lambda size: Spectral(3, 2, 1))
    monkeypatch.setattr(models, "find_source", lambda name: source)
    cost = count_cost("spectral", SIZE)
    assert cost.macs == 3 * 2 * SIZE.pixels
    assert cost.note.startswith("multiply-adds lack those of aten._fft_")


def test_sizes_and_settings_say_what_they_are():
    assert find_size("512") == Size(512, 512)
    assert find_size("800x1280") == Size(height=800, width=1280)
    assert str(Size(800, 1280)) == "800x1280"
    for text in ("0", "12x0", "x", "512x", "512,512", "-1"):
        with pytest.raises(UserError, match="800x1280"):
            find_size(text)
    assert Setting(SIZE).kind == "inference, fp32"
    assert Setting(SIZE, "training", "bf16", True, 4).kind == "training, bf16 AMP, batch 4"
