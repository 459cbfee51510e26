"""One file of COCO's results: its ids, and what cannot be matched."""

import json

import numpy as np
import pytest
from mmdet.datasets import CocoDataset, CocoPanopticDataset
from pycocotools.coco import COCO

from flatten_det.errors import UserError
from flatten_det.predict.coco_results import CocoResults
from flatten_det.results import Prediction

NAMES = ("disk", "box")


def predicted(path: str, label: int, names=NAMES) -> Prediction:
    box = np.array([[1, 2, 5, 9]], np.float32)
    return Prediction(path, (10, 20), names, box, np.array([0.5], np.float32), np.array([label]))


def written(folder, results: CocoResults, predictions) -> list[dict]:
    for prediction in predictions:
        results.add(prediction)
    path, *_ = results.write(folder)
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("images", "ids"),
    [
        (["b/000000000139.jpg", "a/7.png"], [139, 7]),
        (["0.jpg", "1.jpg"], [0, 1]),
        (["b.jpg", "7.jpg"], [1, 2]),
        (["a/7.jpg", "b/007.jpg"], [1, 2]),
        (["²/².jpg", "1.jpg"], [1, 2]),
    ],
)
def test_ids_of_images(tmp_path, images, ids):
    entries = written(tmp_path, CocoResults(images, NAMES), [predicted(each, 1) for each in images])
    assert [entry["image_id"] for entry in entries] == ids
    assert entries[0]["category_id"] == 2
    assert entries[0]["bbox"] == [1, 2, 4, 7]
    told = COCO(tmp_path / "predictions-ids.json")
    assert {each["file_name"]: each["id"] for each in told.loadImgs(told.getImgIds())} == dict(
        zip(images, ids, strict=True)
    )
    assert told.loadCats(2)[0]["name"] == "box"
    assert len(told.loadRes(str(tmp_path / "predictions.json")).anns) == len(images)


@pytest.mark.parametrize("kind", [CocoDataset, CocoPanopticDataset])
def test_coco_has_ids_of_its_own(tmp_path, kind):
    names = kind.METAINFO["classes"]
    known = {"person": 1, "train": 7, "stop sign": 13, "toothbrush": 90}
    found = [predicted("1.jpg", names.index(name), names) for name in known]
    entries = written(tmp_path, CocoResults(["1.jpg"], names), found)
    assert [entry["category_id"] for entry in entries] == list(known.values())


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "truth.json"

    def write(**changes) -> str:
        images = ["val/a.jpg", "train/a.jpg", "val/b.jpg"]
        content = {
            "images": [{"id": f"i{n}", "file_name": name} for n, name in enumerate(images)],
            "annotations": [],
            "categories": [{"id": 30, "name": "box"}, {"id": 10, "name": "disk"}],
        }
        path.write_text(json.dumps(content | changes))
        return str(path)

    return write


def test_ids_of_an_annotation_file(tmp_path, annotations):
    images = ["data/train/a.jpg", "elsewhere/b.jpg"]
    results = CocoResults(images, NAMES, annotations())
    entries = written(tmp_path, results, [predicted(path, 0) for path in images])
    assert [entry["image_id"] for entry in entries] == ["i1", "i2"]
    assert {entry["category_id"] for entry in entries} == {10}
    assert not (tmp_path / "predictions-ids.json").exists()


@pytest.mark.parametrize(
    ("images", "names", "changes", "message"),
    [
        (["c.jpg"], NAMES, {}, "c.jpg: not, or not once, among the images"),
        (["other/a.jpg"], NAMES, {}, "other/a.jpg: not, or not once"),
        (["b.jpg"], ("disc", "box"), {}, "classes disc are no categories of .*did you mean disk"),
        (["b.jpg"], NAMES, {"images": None}, "none of COCO"),
        (["b.jpg"], NAMES, {"images": [{"id": 1}]}, "one of its images has no file_name"),
        (["b.jpg"], NAMES, {"categories": [7]}, "one of its categories has no id"),
    ],
)
def test_what_cannot_be_matched(annotations, images, names, changes, message):
    with pytest.raises(UserError, match=message):
        CocoResults(images, names, annotations(**changes))


def test_an_annotation_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="was not found: check --coco-annotations"):
        CocoResults([], NAMES, str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is not valid JSON"):
        CocoResults([], NAMES, str(tmp_path / "bad.json"))
