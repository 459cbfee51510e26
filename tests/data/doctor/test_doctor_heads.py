"""The number of classes of a model's heads."""

from pathlib import Path

import pytest

from flatten_det.config import load_config
from flatten_det.data.doctor.data_sets import class_count_findings, find_data_sets

CONFIGS = Path(__file__).parents[3] / "configs"
DETECTOR = "mask_rcnn/mask-rcnn_flatten-pvt-t_fpn_1x_coco.py"
CASCADE = "cascade_mask_rcnn/cascade-mask-rcnn_flatten-swin-t_fpn_1x_coco.py"
PANOPTIC = "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic.py"
QUERIES = "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco.py"
SEGMENTOR = "upernet/flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"


def said(config, **options):
    cfg = load_config(CONFIGS / config, {key.replace("__", "."): v for key, v in options.items()})
    return [
        f"{finding.data_set}: {finding.message}"
        for data_set in find_data_sets(cfg)
        for finding in class_count_findings(cfg, data_set)
    ]


@pytest.mark.parametrize("config", [DETECTOR, CASCADE, PANOPTIC, QUERIES, SEGMENTOR])
def test_configs_of_the_zoo_agree(config):
    assert said(config) == []


def test_detector():
    names = "the data set has 80 (person, bicycle, car, ...)"
    assert said(DETECTOR, model__roi_head__mask_head__num_classes=81) == [
        f"train: model.roi_head.mask_head.num_classes is 81, {names}",
        f"val, test: model.roi_head.mask_head.num_classes is 81, {names}",
    ]


def test_one_stage_of_a_cascade():
    (line, _) = said(CASCADE, model__roi_head__bbox_head__1__num_classes=3)
    assert "model.roi_head.bbox_head[1].num_classes is 3" in line


def test_things_and_stuff():
    (line, _) = said(PANOPTIC, model__panoptic_head__num_stuff_classes=54)
    assert "num_stuff_classes is 54, the data set has 53" in line
    (line, _) = said(QUERIES, model__panoptic_fusion_head__num_things_classes=1)
    assert "num_things_classes is 1, the data set has 80" in line


def test_segmentor():
    lines = said(SEGMENTOR, model__auxiliary_head__num_classes=19)
    assert lines[0] == (
        "train: model.auxiliary_head.num_classes is 19, the data set has 150 (wall, building, sky, ...)"
    )


def test_heads_that_count_something_else():
    rpn = dict(model__rpn_head__num_classes=1)
    stuff = dict(model__roi_head__semantic_head=dict(type="FusedSemanticHead", num_classes=183))
    borders = dict(model__auxiliary_head=[dict(type="STDCHead", num_classes=2)])
    assert said(DETECTOR, **rpn, **stuff) == []
    assert said(SEGMENTOR, **borders) == []


def test_no_model():
    cfg = load_config(CONFIGS / DETECTOR)
    cfg.pop("model")
    assert not [f for d in find_data_sets(cfg) for f in class_count_findings(cfg, d)]


def test_classes_without_a_comma():
    """They are text, one class."""
    options = dict(train_dataloader__dataset__metainfo=dict(classes=("person")))
    lines = said(DETECTOR, **options)
    assert "the data set has 1 (person)" in lines[0]
