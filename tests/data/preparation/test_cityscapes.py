"""Cityscapes from its two archives to what MMDetection and MMSegmentation load."""

import json
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import CityscapesDataset as DetDataset
from mmseg.datasets import CityscapesDataset as SegDataset
from pycocotools import mask as coco_mask

from flatten_det.data.preparation.cityscapes import cityscapes, instances_file
from flatten_det.data.preparation.public import prepare
from flatten_det.errors import UserError

COUNTS = {"train": 3, "val": 2}
CITIES = {"train": ["aachen", "ulm"], "val": ["munster"]}
ROAD, SKY, CARAVAN, CAR, RIDER, EGO = 7, 23, 29, 26, 25, 1


def render(index: int) -> dict[str, np.ndarray]:
    """An image and its maps, (64, 128): sky, road, the own car, two cars, a group, a rider."""
    instances = np.full((64, 128), ROAD, np.uint16)
    instances[:20] = SKY
    instances[60:] = EGO
    instances[30:40, 10 : 20 + index] = CAR * 1000
    instances[30:40, 40:60] = CAR * 1000 + 1
    instances[20:25, 70:90] = CAR  # Cars that are not told apart.
    instances[25:50, 100:106] = RIDER * 1000 + 7
    instances[50:56, 110:120] = CARAVAN * 1000  # Not evaluated.
    labels = np.where(instances >= 1000, instances // 1000, instances).astype(np.uint8)
    image = cv2.applyColorMap(labels * 7, cv2.COLORMAP_JET)
    return {"leftImg8bit": image, "gtFine_instanceIds": instances, "gtFine_labelIds": labels}


@pytest.fixture
def archives(tmp_path) -> Path:
    """The two files behind the login, with licences as in the real ones."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    for package in ("leftImg8bit", "gtFine"):
        with zipfile.ZipFile(folder / f"{package}_trainvaltest.zip", "w") as archive:
            archive.writestr("license.txt", "...")
            for split, count in COUNTS.items():
                for index in range(count):
                    city = CITIES[split][index % len(CITIES[split])]
                    stem = f"{package}/{split}/{city}/{city}_{index:06d}_000019"
                    for kind, values in render(index).items():
                        if kind.startswith(package):
                            content = cv2.imencode(".png", values)[1].tobytes()
                            archive.writestr(f"{stem}_{kind}.png", content)
    return folder


@pytest.fixture
def root(archives, tmp_path) -> Path:
    assert prepare(cityscapes(COUNTS), tmp_path / "data", archives) == []
    return tmp_path / "data"


def test_second_run_does_nothing(root, archives, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    before = times()
    assert prepare(cityscapes(COUNTS), root) == []
    assert "nothing to do" in capsys.readouterr().out
    assert times() == before
    assert len(list(archives.iterdir())) == 2


def test_what_was_lost_is_converted_again(root):
    lost = root / instances_file("val"), next(root.rglob("*_gtFine_labelTrainIds.png"))
    for path in lost:
        path.unlink()
    assert prepare(cityscapes(COUNTS), root) == []
    assert all(path.is_file() for path in lost)


def test_missing_images_are_found_after_the_conversion(root):
    lost = next((root / "leftImg8bit" / "val").rglob("*.png"))
    lost.unlink()
    problems = cityscapes(COUNTS).problems(root)
    assert problems[0] == "leftImg8bit/val/: 1 files *_leftImg8bit.png instead of 2"
    name = lost.relative_to(root / "leftImg8bit" / "val").as_posix()
    assert any("annotations/instancesonly" in line and name in line for line in problems)


def test_broken_label_map_is_named(root):
    (root / instances_file("val")).unlink()
    broken = next((root / "gtFine" / "val").rglob("*_instanceIds.png"))
    broken.write_bytes(b"")
    with pytest.raises(UserError, match=rf"{broken.name} is not a label map"):
        prepare(cityscapes(COUNTS), root)
    assert not (root / instances_file("val")).exists()


@pytest.mark.parametrize("split", COUNTS)
def test_mmsegmentation_loads_it(root, split):
    dataset = SegDataset(
        data_root=str(root),
        data_prefix=dict(img_path=f"leftImg8bit/{split}", seg_map_path=f"gtFine/{split}"),
        pipeline=[dict(type="LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
    )
    assert len(dataset) == COUNTS[split]
    for sample in dataset:
        assert sample["img"].shape == (64, 128, 3)
        labels = sample["gt_seg_map"]
        classes = dataset.metainfo["classes"]
        assert labels[0, 0] == classes.index("sky")
        assert labels[45, 0] == classes.index("road")
        assert labels[35, 15] == labels[22, 80] == classes.index("car")
        assert labels[30, 103] == classes.index("rider")
        assert labels[53, 115] == labels[63, 0] == 255
        assert set(np.unique(labels)) == {0, 10, 12, 13, 255}


@pytest.mark.parametrize("split", COUNTS)
def test_mmdetection_loads_it(root, split):
    dataset = DetDataset(
        data_root=str(root),
        ann_file=instances_file(split),
        data_prefix=dict(img=f"leftImg8bit/{split}/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="mmdet.LoadAnnotations", with_bbox=True, with_mask=True),
        ],
    )
    assert len(dataset) == COUNTS[split]
    classes, cities = dataset.metainfo["classes"], set()
    for sample in dataset:
        path = Path(sample["img_path"])
        index = int(path.name.split("_")[1])
        cities.add(path.parent.name)
        names = [classes[label] for label in sample["gt_bboxes_labels"]]
        assert sorted(names) == ["car", "car", "car", "rider"]
        boxes = sample["gt_bboxes"].tensor.tolist()
        crowd = int(np.flatnonzero(sample["gt_ignore_flags"]).item())
        assert boxes[crowd] == [70, 20, 90, 25]
        expected = render(index)["gtFine_instanceIds"]
        assert (sample["gt_masks"].masks[crowd] == (expected == CAR)).all()
        rider = names.index("rider")
        assert boxes[rider] == [100, 25, 106, 50]
        assert (sample["gt_masks"].masks[rider] == (expected == RIDER * 1000 + 7)).all()
    assert cities == set(CITIES[split])


def test_coco_file_is_valid_for_pycocotools(root):
    content = json.loads((root / instances_file("train")).read_text())
    names = tuple(category["name"] for category in content["categories"])
    assert names == DetDataset.METAINFO["classes"]
    assert [a["id"] for a in content["annotations"]] == list(range(1, 13))
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        assert mask.sum() == annotation["area"]
