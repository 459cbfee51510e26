"""Models against published and independently measured numbers; the sizes that configs are about."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn

from flatten_det.backbones import build_backbone
from flatten_det.errors import UserError
from flatten_det.lab.complexity import (
    SAMPLING,
    Complexity,
    build_without_values,
    count_backbone,
    count_macs,
    count_model,
)
from flatten_det.lab.complexity.target import training_size

CONFIGS = Path(__file__).parents[3] / "configs"
CASCADE = "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco.py"
UPERNET = "upernet/flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"


def count_config(name: str, size: tuple[int, int], **model) -> Complexity:
    cfg = Config.fromfile(CONFIGS / name)
    cfg.model.update(model)
    return count_model(build_without_values(cfg), size)


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(name)


# Multiply-adds in G that fvcore counts, attention products included.
MULTIPLY_ADDS = [
    ("pvt-t", (224, 224), 1.94),
    ("pvt-t", (800, 1280), 69.73),
    ("flatten-pvt-t", (224, 224), 2.05),
    ("flatten-pvt-t", (512, 2048), 42.80),
    ("pvt-s", (512, 512), 23.13),
    ("flatten-pvt-s", (224, 224), 4.05),
    ("flatten-pvt-s", (800, 1280), 82.60),
    # As the paper reports them (Fig. 6).
    ("flatten-pvtv2-b1", (224, 224), 2.2),
    ("flatten-pvtv2-b2", (224, 224), 4.3),
    ("flatten-swin-t", (224, 224), 4.5),
    ("flatten-swin-b-384", (384, 384), 46.5),
    ("flatten-cswin-t", (224, 224), 4.3),
    ("flatten-cswin-b", (224, 224), 15.0),
]


@pytest.mark.parametrize(("name", "size", "expected"), MULTIPLY_ADDS)
def test_backbone(name, size, expected):
    backbone = on_meta(name)
    parameters = sum(p.numel() for p in backbone.parameters())
    counted = count_backbone(backbone, size)
    assert counted.macs / 1e9 == pytest.approx(expected, rel=0.02)
    assert counted.parameters == parameters


def test_backbone_without_values_counts_as_with_them():
    by_shapes = count_backbone(on_meta("flatten-swin-t"), (70, 90))
    real = build_backbone("flatten-swin-t")
    assert count_macs(real, lambda: real(torch.rand(1, 3, 70, 90))) == by_shapes


# The paper's Table 1 and 2: FLOPs in G and parameters in M of the whole model.
@pytest.mark.parametrize(
    ("name", "size", "flops", "parameters"),
    [
        ("mask_rcnn/mask-rcnn_pvt-t_fpn_1x_coco.py", (800, 1280), 240, 33),
        ("mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_coco.py", (800, 1280), 268, 49),
        (CASCADE, (800, 1280), 747, 87),
        (CASCADE.replace("swin-t", "swin-s"), (800, 1280), 841, 108),
        ("mask_rcnn/mask-rcnn_swin-t_fpn_3x_coco.py", (800, 1280), 267, 48),
        ("semantic_fpn/pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py", (512, 2048), 158, 17),
        ("upernet/swin-t_upernet_8xb2-160k_ade20k-512x512.py", (512, 2048), 945, 60),
    ],
)
def test_whole_model_costs_what_the_paper_says(name, size, flops, parameters):
    counted = count_config(name, size)
    assert counted.macs / 1e9 == pytest.approx(flops, rel=0.015)
    assert counted.parameters / 1e6 == pytest.approx(parameters, abs=0.6)


def test_two_stages_are_counted_on_their_proposals():
    macs = count_config(
        "mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_1x_coco.py", (128, 160)
    ).macs_by_module
    box = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4 * 80)
    mask = 14 * 14 * (4 * 256 * 256 * 9 + 256 * 256 * 4 + 4 * 256 * 80)
    assert macs["roi_head.bbox_head"] == 1000 * box
    assert macs["roi_head.mask_head"] == 100 * mask
    assert macs[""] == sum(macs[part] for part in ("backbone", "neck", "rpn_head", "roi_head"))


def test_every_stage_of_a_cascade_counts():
    macs = count_config(CASCADE, (128, 160)).macs_by_module
    for heads in ("bbox_head", "mask_head"):
        stages = [macs[f"roi_head.{heads}.{stage}"] for stage in range(3)]
        assert len(set(stages)) == 1
        assert macs[f"roi_head.{heads}"] == 3 * stages[0]


def test_auxiliary_head_has_parameters_only():
    counted = count_config(UPERNET, (64, 64))
    assert counted.macs_by_module.keys() & {"auxiliary_head", "decode_head"} == {"decode_head"}
    assert counted.macs == sum(counted.macs_by_module[p] for p in ("backbone", "decode_head"))
    without = count_config(UPERNET, (64, 64), auxiliary_head=None)
    assert counted.parameters > without.parameters
    assert counted.macs == without.macs


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("dino/dino-4scale_flatten-swin-t_8xb2-12e_coco.py", "decoder"),
        ("deformable_detr/deformable-detr_flatten-pvtv2-b2_16xb2-50e_coco.py", "decoder"),
        ("mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco.py", "panoptic_head"),
        ("mask2former/flatten-swin-t_mask2former_8xb2-160k_ade20k-512x512.py", "decode_head"),
    ],
)
def test_models_that_look_at_values(name, head):
    size = (128, 160)
    counted = count_config(name, size, **({"num_queries": 20} if "dino" in name else {}))
    macs = counted.macs_by_module
    # Mask2Former's decoder samples like DETR's relatives.
    assert counted.uncounted.keys() == {"aten.grid_sampler_2d"} <= SAMPLING
    backbone = on_meta("flatten-pvtv2-b2" if "pvtv2" in name else "flatten-swin-t")
    assert macs["backbone"] == count_backbone(backbone, size).macs
    if "mask2former" in name:
        assert macs[""] == macs["backbone"] + macs[head]
    else:
        assert macs[""] > macs["backbone"] + macs["neck"] + macs["encoder"] + macs[head] > 0


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("quickstart/*.py")), ids=lambda p: p.stem)
def test_quickstarts_count_completely(path):
    """The zoo's own configs are counted by tests/lab/zoo."""
    cfg = Config.fromfile(path)
    # The trees' tests are of whole photographs.
    size = (256, 256) if path.stem.endswith("_trees") else training_size(cfg)
    counted = count_model(build_without_values(cfg), size)
    assert counted.macs > 1e8
    assert counted.uncounted == {}
    if "mask-rcnn" in path.stem:
        # Its masks come from 7x7 maps: two convolutions, a transposed one, one mask for all classes.
        mask = 7 * 7 * (2 * 64 * 64 * 9 + 64 * 64 * 4 + 4 * 64)
        assert counted.macs_by_module["roi_head.mask_head"] == 100 * mask


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="cannot count a Linear"):
        count_model(nn.Linear(2, 2), (32, 32))


RESIZE = {"dataset": {"pipeline": [{"type": "Load"}, {"type": "Resize", "scale": (1333, 800)}]}}
SHAPES = {"dataset": {"image_size": ((96, 96), (128, 192)), "object_size": (8, 96)}}


@pytest.mark.parametrize(
    ("preprocessor", "test", "size"),
    [
        ({}, RESIZE, (800, 1280)),
        ({"size": (512, 1024)}, RESIZE, (512, 1024)),
        ({}, SHAPES, (128, 192)),
        ({"batch_augments": [{"type": "Fixed", "size": (640, 640)}]}, RESIZE, (640, 640)),
    ],
)
def test_training_size(preprocessor, test, size):
    cfg = Config(dict(model=dict(data_preprocessor=preprocessor), test_dataloader=test))
    assert training_size(cfg) == size


@pytest.mark.parametrize(
    "cfg",
    [
        dict(model=dict(type="A")),
        dict(model={}, test_dataloader={"dataset": {"pipeline": [{"type": "Resize", "size": 3}]}}),
    ],
)
def test_config_that_does_not_say_is_one_error(cfg):
    with pytest.raises(UserError, match="no image size") as caught:
        training_size(Config(cfg))
    assert "\n" not in str(caught.value)
