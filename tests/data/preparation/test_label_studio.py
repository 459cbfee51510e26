"""What Label Studio and CVAT export is taken as it is, or refused with the name of what to export."""

import json
from pathlib import Path

import numpy as np
import pytest
from custom_folder import make_custom_split, write_json
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from flatten_det.data.preparation.coco_file import Division
from flatten_det.data.preparation.custom import CustomDataOptions, write_config
from flatten_det.errors import UserError

MASK_RCNN = Path("mask-rcnn_flatten-pvt-nano_fpn_shapes")
RETINANET = Path("retinanet_flatten-pvt-nano_fpn_shapes")
SEMANTIC_FPN = Path("flatten-pvt-nano_semantic-fpn_shapes")


@pytest.fixture
def prepare(tmp_path):
    """Prepares a folder by halves; returns its config, and the objects by image: class and box."""

    def prepare(folder: Path, config: Path = RETINANET) -> tuple[Config, dict[str, list]]:
        out = tmp_path / "made.py"
        write_config(CustomDataOptions(folder, config, out, division=Division(0.5), force=True))
        cfg = Config.fromfile(out)
        found = {}
        for split in ("train", "val"):
            content = json.loads(out.with_name(f"made_{split}.json").read_text())
            classes = {category["id"]: category["name"] for category in content["categories"]}
            for image in content["images"]:
                own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
                name = Path(image["file_name"]).name
                found[name] = [(classes[a["category_id"]], a["bbox"]) for a in own]
            with DefaultScope.overwrite_default_scope("mmdet"):
                data = DATASETS.build({**cfg[f"{split}_dataloader"].dataset, "pipeline": []})
            paths = (data.get_data_info(i)["img_path"] for i in range(len(data)))
            assert all(Path(path).is_file() for path in paths)
        return cfg, found

    return prepare


@pytest.fixture
def truth(tmp_path):
    """Four images as Label Studio stores uploads, and its COCO export: ids from 0, null for no size."""
    content = make_custom_split(tmp_path / "export" / "images", 4)
    ids = {category["id"]: i for i, category in enumerate(content["categories"])}
    for index, image in enumerate(content["images"]):
        name = f"8a2b3c4{index}-photo_{index}.png"
        (tmp_path / "export" / "images" / image["file_name"]).rename(
            tmp_path / "export" / "images" / name
        )
        image |= {"id": index, "file_name": f"images/{name}"}
    content["categories"] = [{**c, "id": ids[c["id"]]} for c in content["categories"]]
    for number, annotation in enumerate(content["annotations"]):
        annotation |= {"id": number, "image_id": int(annotation["image_id"]), "ignore": 0}
        annotation["category_id"] = ids[annotation["category_id"]]
    content["info"] = {"year": 2026, "version": "1.0", "contributor": "Label Studio"}
    return content


def objects(truth: dict) -> dict[str, list]:
    classes = {category["id"]: category["name"] for category in truth["categories"]}
    found = {Path(image["file_name"]).name: [] for image in truth["images"]}
    for a in truth["annotations"]:
        name = Path(truth["images"][a["image_id"]]["file_name"]).name
        found[name].append((classes[a["category_id"]], a["bbox"]))
    return found


@pytest.mark.parametrize(
    "prefix",
    [
        "images/",
        "images\\",
        "../../label-studio/data/media/upload/1/",
        "/data/upload/1/",
        "/data/local-files/?d=somewhere/images/",
        "C:\\Users\\me\\images\\",
        "s3://bucket/images/",
        "https://example.org/data/upload/1/",
    ],
)
def test_coco(truth, prepare, tmp_path, prefix):
    expected = objects(truth)
    for image in truth["images"]:
        image["file_name"] = prefix + Path(image["file_name"]).name
    truth["images"][1] |= {"width": None, "height": None}
    write_json(tmp_path / "export" / "result.json", truth)
    cfg, found = prepare(tmp_path / "export", MASK_RCNN)
    assert found == expected
    assert cfg.train_dataloader.dataset.data_prefix.img in ("", "images")


def test_names_of_local_files_are_quoted(truth, prepare, tmp_path):
    first = truth["images"][0]
    images = tmp_path / "export" / "images"
    (tmp_path / "export" / first["file_name"]).rename(images / "Baum ä 1.png")
    first["file_name"] = "/data/local-files/?d=images/Baum%20%C3%A4%201.png"
    write_json(tmp_path / "export" / "result.json", truth)
    assert "Baum ä 1.png" in prepare(tmp_path / "export")[1]


def test_files_elsewhere_that_are_not_there(truth, prepare, tmp_path):
    """Neither one of no name here, nor one of two that fit equally well, is guessed."""
    images = tmp_path / "export" / "images"
    truth["images"][0]["file_name"] = "../elsewhere/none.png"
    truth["images"][1]["file_name"] = "../elsewhere/8a2b3c42-photo_2.png"
    (images / "more").mkdir()
    (images / "more" / "8a2b3c42-photo_2.png").write_bytes(b"")
    write_json(tmp_path / "export" / "result.json", truth)
    with pytest.raises(UserError, match=r"2 file names leave .*none\.png"):
        prepare(tmp_path / "export")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "annotations.xml",
            "<annotations><version>1.1</version><image id='0' name='a.jpg' width='9' height='9'>"
            "<box label='cat' xtl='1' ytl='1' xbr='5' ybr='5'/></image></annotations>",
            r"CVAT's own form .*: export the task as COCO 1\.0",
        ),
        (
            "project-1.json",
            [{"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [{"result": []}]}],
            "Label Studio's own form: export the project as COCO or YOLO",
        ),
        (
            "project-1-min.json",
            [{"image": "/data/upload/1/a.jpg", "annotation_id": 3, "annotator": 1}],
            "Label Studio's own form",
        ),
        (
            "images/task-1-annotation-2-by-1-tag-car-0.png",
            None,
            "brush PNGs do not say whose image they are: export the project as Brush labels to COCO",
        ),
    ],
)
@pytest.mark.parametrize("config", [RETINANET, SEMANTIC_FPN])
def test_own_forms_are_refused(prepare, tmp_path, name, content, message, config):
    root = tmp_path / "export"
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(root / "images" / "a.jpg")
    if content is None:
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / name)
    elif isinstance(content, str):
        (root / name).write_text(content)
    else:
        write_json(root / name, content)
    with pytest.raises(UserError, match=message) as caught:
        prepare(root, config)
    assert "\n" not in str(caught.value)
