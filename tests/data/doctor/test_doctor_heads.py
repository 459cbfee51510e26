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
    cfg = load_config(CONFIGS / config, options)
    return [
        f"{finding.data_set}: {finding.message}"
        for data_set in find_data_sets(cfg)
        for finding in class_count_findings(cfg, data_set)
    ]


@pytest.mark.parametrize("config", [DETECTOR, CASCADE, PANOPTIC, QUERIES, SEGMENTOR])
def test_configs_of_the_zoo_agree(config):
    assert said(config) == []


OF_COCO = "the data set has 80 (person, bicycle, car, ...)"


@pytest.mark.parametrize(
    ("config", "field", "count", "of_data"),
    [
        (DETECTOR, "roi_head.mask_head.num_classes", 81, OF_COCO),
        (CASCADE, "roi_head.bbox_head.1.num_classes", 3, OF_COCO),
        (PANOPTIC, "panoptic_head.num_stuff_classes", 54, "the data set has 53"),
        (QUERIES, "panoptic_fusion_head.num_things_classes", 1, OF_COCO),
        (
            SEGMENTOR,
            "auxiliary_head.num_classes",
            19,
            "the data set has 150 (wall, building, sky, ...)",
        ),
    ],
)
def test_another_number(config, field, count, of_data):
    lines = said(config, **{f"model.{field}": count})
    place = f"model.{field.replace('.1.', '[1].')}"
    for line, loaders in zip(lines, ("train", "val, test"), strict=True):
        assert line.startswith(f"{loaders}: {place} is {count}, {of_data}")


def test_heads_that_count_something_else():
    stuff = dict(type="FusedSemanticHead", num_classes=183)
    others = {"model.rpn_head.num_classes": 1, "model.roi_head.semantic_head": stuff}
    assert said(DETECTOR, **others) == []
    borders = [dict(type="STDCHead", num_classes=2)]
    assert said(SEGMENTOR, **{"model.auxiliary_head": borders}) == []


def test_no_model():
    cfg = load_config(CONFIGS / DETECTOR)
    cfg.pop("model")
    assert not [f for d in find_data_sets(cfg) for f in class_count_findings(cfg, d)]


def test_classes_without_a_comma():
    """They are text, one class."""
    lines = said(DETECTOR, **{"train_dataloader.dataset.metainfo": dict(classes="person")})
    assert "the data set has 1 (person)" in lines[0]
