"""What is missing in a folder is said precisely, and what the configs ask for is asked for."""

import json
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from flatten_det.data.preparation.cityscapes import CITYSCAPES
from flatten_det.data.preparation.layout import Files, Listing, Pairs, PublicDataSet
from flatten_det.data.preparation.public import ADE20K, COCO, COCO_PANOPTIC

CONFIGS = Path(__file__).parents[3] / "configs"
ADE20K_ROOT = "data/ade/ADEChallengeData2016"
TRAIN = Files("train2017", ".jpg", 6)
COCO_FOLDER = PublicDataSet("", (TRAIN, Listing("annotations/instances_train2017.json", TRAIN)))
IMAGES, LABELS = Files("images/training", ".jpg", 6), Files("annotations/training", ".png", 6)
ADE20K_FOLDER = PublicDataSet("", (IMAGES, LABELS, Pairs(IMAGES, LABELS)))


@pytest.fixture
def coco(coco_folder, tmp_path):
    return Path(shutil.copytree(coco_folder, tmp_path / "coco"))


@pytest.fixture
def ade20k(ade20k_folder, tmp_path):
    return Path(shutil.copytree(ade20k_folder, tmp_path / "ade"))


def test_missing_images_are_counted_and_named(coco):
    assert COCO_FOLDER.problems(coco) == []
    for index in (1, 2, 3, 5):
        (coco / "train2017" / f"{index:012d}.jpg").unlink()
    assert COCO_FOLDER.problems(coco) == [
        "train2017/: 2 files *.jpg instead of 6",
        "train2017/: 4 of the 6 files that annotations/instances_train2017.json names are missing: "
        "000000000001.jpg, 000000000002.jpg, 000000000003.jpg, ... and 1 more",
    ]


def test_missing_folder_and_file_are_named(coco, tmp_path):
    shutil.rmtree(coco / "train2017")
    (coco / "annotations" / "instances_train2017.json").unlink()
    assert COCO_FOLDER.problems(coco) == [
        "train2017/: missing (6 files *.jpg)",
        "annotations/instances_train2017.json: missing",
    ]
    assert COCO_FOLDER.problems(tmp_path / "none") == [f"{tmp_path / 'none'}: no such folder"]


@pytest.mark.parametrize("content", ['{"images": [', "{}", "[]", '{"images": [1]}'])
def test_damaged_annotations_are_named(coco, content):
    (coco / "annotations" / "instances_train2017.json").write_text(content)
    (problem,) = COCO_FOLDER.problems(coco)
    assert problem.startswith("annotations/instances_train2017.json: damaged, not a COCO file")


def test_label_maps_that_are_missing_or_left_over(ade20k):
    assert ADE20K_FOLDER.problems(ade20k) == []
    folder = ade20k / "annotations" / "training"
    (folder / "ADE_train_00000002.png").rename(folder / "other.png")
    assert ADE20K_FOLDER.problems(ade20k) == [
        "annotations/training/: 1 of the files that belong to those in images/training/ are missing: "
        "ADE_train_00000002.png",
        "images/training/: 1 of the files that belong to those in annotations/training/ are missing: "
        "other.jpg",
    ]


def test_segments_of_panoptic_annotations(tmp_path):
    images, segments = Files("val", ".jpg", 1), Files("panoptic", ".png", 1)
    layout = PublicDataSet("", (images, segments, Listing("val.json", images, segments)))
    for folder, name in (("val", "a.jpg"), ("panoptic", "b.png")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).touch()
    content = {"images": [{"file_name": "a.jpg"}], "annotations": [{"file_name": "a.png"}]}
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert layout.problems(tmp_path) == [
        "panoptic/: 1 of the 1 files that val.json names are missing: a.png"
    ]


@pytest.mark.parametrize(
    ("config", "dataset", "root"),
    [
        ("mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_coco", COCO, "data/coco"),
        ("mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic", COCO_PANOPTIC, None),
        ("mask_rcnn/mask-rcnn_flatten-swin-t_fpn_1x_cityscapes", CITYSCAPES, "data/cityscapes"),
        ("upernet/flatten-swin-t_upernet_8xb1-160k_cityscapes-1024x2048", CITYSCAPES, None),
        ("upernet/flatten-swin-t_upernet_8xb2-160k_ade20k-512x512", ADE20K, ADE20K_ROOT),
    ],
)
def test_layouts_hold_what_the_configs_read(config, dataset, root):
    cfg = Config.fromfile(CONFIGS / f"{config}.py")
    folders = {part.folder for part in dataset.parts if isinstance(part, Files)}
    listings = {part.file for part in dataset.parts if isinstance(part, Listing)}
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        data = loader.dataset
        while "dataset" in data:
            data = data.dataset
        assert root in (None, data.data_root.rstrip("/"))
        assert {folder.rstrip("/") for folder in data.data_prefix.values()} <= folders
        if "ann_file" in data:
            assert data.ann_file in listings
