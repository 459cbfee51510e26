"""Counting as the published numbers do, against them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flatten_det.backbones import build_backbone
from flatten_det.config import load_config
from flatten_det.errors import UserError
from flatten_det.lab.complexity import build_without_values, count_backbone, count_model
from flatten_det.lab.complexity.paper import (
    PUBLISHED,
    compare_config,
    count_as_published,
    find_published,
)
from flatten_det.lab.complexity.target import find_target

ROOT = Path(__file__).parents[3]
SEMANTIC_FPN = "configs/semantic_fpn/{}_semantic-fpn_4xb4-80k_ade20k-512x512.py"
MASK_RCNN = "configs/mask_rcnn/mask-rcnn_{}_fpn_1x_coco.py"


def count(name: str, size: tuple[int, int]):
    return count_as_published(load_config(ROOT / name), size)


def test_parts_by_hand():
    """PVT-T's products are in closed form; a linear model keeps those of its baseline."""
    size = (128, 256)
    maps = [(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    products = sum(
        2 * 2 * h * w * (h // r) * (w // r) * dim
        for (h, w), r, dim in zip(maps, (8, 4, 2, 1), (64, 128, 320, 512), strict=True)
    )
    softmax, linear = (
        count(SEMANTIC_FPN.format(name), size) for name in ("pvt-t", "flatten-pvt-t")
    )
    assert softmax.softmax == linear.softmax == products
    assert softmax.paper_style == softmax.modules + products
    # Complete is the same without biases and norms, which are not even 1 %.
    assert softmax.complete.macs < softmax.paper_style < 1.01 * softmax.complete.macs


def test_depthwise_convolutions_are_in_the_modules():
    """Those of our layer too, which are called where somebody counts."""
    size = (64, 96)
    linear = count(SEMANTIC_FPN.format("flatten-pvt-t"), size)
    own = linear.complete.macs_by_operator["flatten_det.focused_linear_attention"]
    products = 0
    for tokens, dim in zip((16 * 24, 8 * 12, 4 * 6, 2 * 3), (64, 128, 320, 512), strict=True):
        products += 2 * (2 * tokens * dim * 64 + tokens * dim)
    assert own == products
    assert linear.modules > linear.complete.macs - products
    assert linear.modules == pytest.approx(linear.complete.macs - products, rel=0.01)


def test_counting_both_does_not_change_the_complete_count():
    cfg = load_config(ROOT / MASK_RCNN.format("flatten-swin-t"))
    both, alone = count_as_published(cfg, (96, 128)).complete, build_without_values(cfg)
    assert both.parameters == sum(p.numel() for p in alone.parameters())
    assert both.macs == count_model(alone, (96, 128)).macs


# The rest of the tables is counted by the README's command.
@pytest.mark.parametrize("title", ["FLatten-PVT-T, Mask R-CNN", "Swin-S, Cascade Mask R-CNN"])
def test_paper_style_gives_the_published_figures(title):
    published = next(p for p in PUBLISHED if p.title == title)
    cfg = load_config(ROOT / published.config)
    counted = count_as_published(cfg, published.size, **published.changes)
    assert counted.paper_style / 1e9 == pytest.approx(published.gflops, rel=0.01)
    assert counted.complete.parameters / 1e6 == pytest.approx(published.mparams, abs=0.9)


def explanation(name: str) -> str | None:
    published = find_published(SEMANTIC_FPN.format(name))
    counted = count(published.config, published.size)
    return replace(counted, title="model", published=published).explanation


def test_larger_differences_are_explained():
    explained = explanation("flatten-pvt-t")
    assert "\n" not in explained
    assert explained.startswith("model: 169 G published = 128.3 G complete -1.9 G (")
    assert "+33.3 G (products of softmax attention" in explained
    assert "+9.3 G not explained" in explained
    assert explanation("pvt-t") is None


def test_schedules_and_other_sizes():
    three = MASK_RCNN.format("flatten-swin-t").replace("1x", "3x")
    assert find_published(three).gflops == 268
    # A baseline that the zoo has no config for is not what its linear twin's config stands for.
    cascade = "configs/cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-s_fpn_3x_coco.py"
    assert find_published(cascade).gflops == 841
    target = find_target(str(ROOT / three))
    assert compare_config(target, (64, 96)).published is None
    assert compare_config(target, None).published.gflops == 268


def test_changed_models_and_backbones_are_not_compared():
    config = str(ROOT / MASK_RCNN.format("pvt-t"))
    target = find_target(config, {"model.backbone.attn_types": "LLLL"})
    assert compare_config(target, None).published is None
    with pytest.raises(UserError, match="flatten-pvt-t is a backbone"):
        compare_config(find_target("flatten-pvt-t"), (64, 64))


def test_models_without_attention_types():
    """A backbone of another make counts as it is."""
    target = find_target(str(ROOT / MASK_RCNN.format("pvt-t")))
    target.cfg.model.backbone = dict(type="ResNet", depth=18, out_indices=(0, 1, 2, 3))
    target.cfg.model.neck.in_channels = [64, 128, 256, 512]
    counted = compare_config(target, (64, 96))
    assert counted.softmax == 0
    assert counted.paper_style > counted.complete.macs


def test_softmax_baseline_of_a_backbone_is_in_its_matrix_products():
    """What count_as_published relies on: nothing but attention multiplies batches of matrices."""
    with torch.device("meta"):
        swin = build_backbone("swin-t")
    counted = count_backbone(swin, (56, 56))
    products, windows = 0, (2, 1, 1, 1)
    for stage, (dim, depth) in enumerate(zip((96, 192, 384, 768), (2, 2, 6, 2), strict=True)):
        products += depth * windows[stage] ** 2 * 2 * 49 * 49 * dim
    assert counted.macs_by_operator["aten.bmm"] == products
