"""Annotation files with mistakes are refused in one line; what is only left out is filled in."""

import json
import re
from copy import deepcopy

import cv2
import pytest
import torch
from custom_folder import CATEGORIES, make_custom_split, write_json
from mmcv.transforms import LoadImageFromFile
from mmdet.evaluation import CocoMetric
from PIL import Image
from pycocotools import mask as coco_mask
from shapes_patient import save_turned

from flatten_det.data.preparation.coco_file import (
    Division,
    completed,
    divide,
    divide_by_name,
    read_coco_file,
)
from flatten_det.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with 20 images and their annotations."""
    folder = tmp_path_factory.mktemp("images")
    return folder, make_custom_split(folder, 20)


@pytest.fixture
def content(made):
    return deepcopy(made[1])


@pytest.fixture
def read(tmp_path):
    return lambda content: read_coco_file(write_json(tmp_path / "a.json", content))


def turned_photograph(folder, **annotation):
    """A COCO file of one image that is seen 40 wide and 60 high."""
    save_turned(Image.new("RGB", (60, 40)), folder / "a.jpg", 6)
    box = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [5, 42, 25, 15]}
    return {
        "images": [{"id": 0, "file_name": "a.jpg"}],
        "annotations": [{**box, **annotation}],
        "categories": [{"id": 1, "name": "pear"}],
    }


def test_good_file(read, content):
    file = read(content)
    assert file.classes == tuple(CATEGORIES.values())
    assert file.without_masks() == 0
    assert completed(file, file.path.parent) == (content, [])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("categories", [], "its categories are empty"),
        ("categories 1 name", "", r"1 of 3 categories have no name.*number 2 .*\(id 3\)"),
        ("categories 1 id", 7, "categories share an id: 7"),
        ("categories 1 name", "o'range", "categories share a name: o'range"),
        ("images", [], "it names no images"),
        ("images 4 file_name", 5, "1 of 20 images have no file_name.*number 5"),
        ("images 4 id", "3", "images share an id: 3"),
        *(
            ("images 4 width", side, "or height that is no size")
            for side in (0, -1, True, 1.0, "1")
        ),
        ("annotations", [], "it has no annotations"),
        ("annotations 3 image_id", 99, "1 of 60 annotations have no image_id that is in"),
        ("annotations 3 category_id", 5, "have no category_id that is in its categories"),
        ("annotations 3 id", 1, "annotations share an id: 1"),
        ("annotations 3 bbox", [1, 2, 3], "have no bbox of four numbers"),
        ("annotations 3 bbox", [1, 2, 3, None], "have no bbox of four numbers"),
        ("annotations 3 area", "big", "have an area that is no number"),
        ("annotations 3", 17, "1 of 60 annotations have no id"),
        (
            "annotations * iscrowd",
            1,
            r"of its 60 annotations, 60 are crowds \(iscrowd 1\).* nothing",
        ),
        ("annotations * bbox", [1, 1, 0, 5], "0 are crowds .*the others have no area"),
        ("images", "none", "is no COCO file of objects"),
    ],
)
def test_mistakes(read, content, place, value, message):
    """In one place of the content, or in that of all entries."""
    nodes, (*keys, last) = [content], [int(k) if k.isdigit() else k for k in place.split()]
    for key in keys:
        nodes = nodes[0] if key == "*" else [node[key] for node in nodes]
    for node in nodes:
        node[last] = value
    with pytest.raises(UserError, match=rf"a\.json.*{message}") as error:
        read(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../a.png", "a/../../b.png", "C:\\a.png", "C:a.png", "..\\a.png", "a\0.png"]
    + ["http://x/a.png", "day\\..\\a.png", "\\a.png"],
)
def test_file_names_that_leave_the_folder(read, content, name):
    content["images"][0]["file_name"] = name
    content["images"][1]["file_name"] = "a..b.jpg"
    content["images"][2]["file_name"] = "day 1/a.jpg"
    with pytest.raises(UserError, match="1 file names leave the image folder: "):
        read(content)


@pytest.mark.parametrize("text", ["", '{"images": [', "[" * 100_000, "\xff"])
def test_what_is_no_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_coco_file(path)


def test_what_exporters_leave_out_is_filled_in(read, content, made):
    bare = deepcopy(content)
    bare["annotations"][0]["segmentation"] = content["annotations"][0]["segmentation"] = []
    del bare["annotations"][1]["segmentation"], content["annotations"][1]["segmentation"]
    assert read(bare).without_masks() == 2
    for image in bare["images"]:
        del image["width"], image["height"]
    for index, annotation in enumerate(bare["annotations"]):
        del annotation["iscrowd"], annotation["area"]
        annotation["id"] = index
    full, added = completed(read(bare), made[0])
    objects = ["annotation ids from 1 on", "area (that of the box)", "iscrowd (0)"]
    assert added == [*objects, "width and height of images"]
    assert full["images"] == content["images"]
    for annotation, original in zip(full["annotations"], content["annotations"], strict=True):
        _, _, width, height = original["bbox"]
        assert annotation == {**original, "area": width * height}


def test_photographs_are_sized_as_a_training_sees_them(tmp_path, read):
    """The sides that EXIF turns; what is not turned, or not to be turned, keeps its own."""
    names = {}
    for orientation in range(1, 9):
        name = f"{orientation}.jpg"
        save_turned(Image.new("RGB", (60, 40)), tmp_path / name, orientation)
        names[name] = cv2.imread(str(tmp_path / name)).shape[1::-1]
    assert set(names.values()) == {(60, 40), (40, 60)}
    content = turned_photograph(tmp_path)
    content["images"] = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    content, _ = completed(read(content), tmp_path)
    assert {i["file_name"]: (i["width"], i["height"]) for i in content["images"]} == names


def test_perfect_predictions_on_photographs_are_perfect(tmp_path, read):
    """Of an image that is loaded, sized and compared in the same way everywhere."""
    polygon = [5, 42, 30, 42, 30, 57, 5, 57]
    content = turned_photograph(tmp_path, segmentation=[polygon])
    full, _ = completed(read(content), tmp_path)
    shape = LoadImageFromFile()({"img_path": str(tmp_path / "a.jpg")})["ori_shape"]
    rle = coco_mask.merge(coco_mask.frPyObjects([polygon], *shape))
    metric = CocoMetric(str(write_json(tmp_path / "full.json", full)), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": ("pear",)}
    found = {
        "bboxes": torch.tensor([[5.0, 42, 30, 57]]),
        "scores": torch.ones(1),
        "labels": torch.zeros(1, dtype=torch.int64),
        "masks": [rle],
    }
    metric.process({}, [{"img_id": 0, "ori_shape": shape, "pred_instances": found}])
    values = metric.evaluate(1)
    assert values["coco/bbox_mAP"] == values["coco/segm_mAP"] == 1


def test_masks_of_photographs_that_are_turned(tmp_path, read):
    mask = {"size": [40, 60], "counts": [0, 2400]}
    content = turned_photograph(tmp_path, segmentation=mask)
    with pytest.raises(UserError, match=r"1 masks .* annotation 1, not \[60, 40\]"):
        completed(read(content), tmp_path)
    mask["size"] = [60, 40]
    assert completed(read(content), tmp_path)[0]["images"][0]["height"] == 60


@pytest.mark.parametrize("id_", ["a0-x", 0, "0", 10**400])
def test_annotation_ids_that_pycocotools_misreads(read, content, made, id_):
    content["annotations"][0]["id"] = id_
    full, added = completed(read(content), made[0])
    assert added == ["annotation ids from 1 on"]
    assert [annotation["id"] for annotation in full["annotations"]] == [*range(1, 61)]


def test_ids_of_mixed_types_are_counted_anew(read, content, made):
    content["images"][3]["id"] = 3
    for annotation in content["annotations"]:
        if annotation["image_id"] == "3":
            annotation["image_id"] = 3
        if annotation["category_id"] == 7:
            annotation["category_id"] = "seven"
    content["categories"][0]["id"] = "seven"
    full, added = completed(read(content), made[0])
    assert added == ["category ids from 1 on", "image ids from 1 on"]
    assert [image["id"] for image in full["images"]] == [*range(1, 21)]
    assert [category["id"] for category in full["categories"]] == [1, 2, 3]
    assert [(a["image_id"], a["category_id"]) for a in full["annotations"]] == [
        (image, category) for image in range(1, 21) for category in (1, 2, 3)
    ]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32-le"])
def test_files_with_a_byte_order_mark(tmp_path, content, made, encoding):
    path = tmp_path / "a.json"
    text = json.dumps(content, ensure_ascii=False)
    mark = "\ufeff" if encoding == "utf-32-le" else ""
    path.write_bytes((mark + text).encode(encoding))
    full, added = completed(read_coco_file(path), made[0])
    assert (full, added) == (content, ["UTF-8 without a byte order mark"])
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8 \(byte 0xc4 in line 1\): save it as UTF-8"):
        read_coco_file(path)


def test_root_of_a_roboflow_export_is_left_out(read, content, made):
    root = {"id": 0, "name": "o'range", "supercategory": "none"}
    content["categories"][0]["supercategory"] = "o'range"
    with_root = {**content, "categories": [root, *content["categories"]]}
    full, added = completed(read(with_root), made[0])
    assert (full, added) == (content, ["the classes without their root (Roboflow's)"])
    with_root["annotations"][0]["category_id"] = 0
    with pytest.raises(UserError, match="categories share a name: o'range"):
        read(with_root)


def test_division_keeps_images_together_and_does_not_depend_on_the_order(read, content):
    train, val = divide(read(content), Division(0.2))
    assert (len(train["images"]), len(val["images"])) == (16, 4)
    for part in (train, val):
        assert part["categories"] == content["categories"]
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} == ids
    assert len(train["annotations"]) + len(val["annotations"]) == len(content["annotations"])
    shuffled = {**content, "images": content["images"][::-1]}
    _, again = divide(read(shuffled), Division(0.2))
    assert sorted(map(json.dumps, again["images"])) == sorted(map(json.dumps, val["images"]))


@pytest.mark.parametrize(
    ("separator", "names", "group"),
    [
        (r"[ _.-]*\d+$", "clip{}_00{}.png", r"clip\d"),
        ("_x", "tile{}_x{}_y0.png", r"tile\d"),
        (r"\.rf\.", "p{}_jpg.rf.{}ab.png", r"p\d"),
        (r"\d+$", "clip{}/{}.png", r"clip\d"),
    ],
)
def test_groups_stay_in_one_part(separator, names, group, capsys):
    names = [names.format(i, j) for i in range(5) for j in range(4)]
    parts = divide_by_name(names, Division(0.25, re.compile(separator)), str)
    assert list(map(len, parts)) == [16, 4]
    train, val = ({re.match(group, name)[0] for name in part} for part in parts)
    assert not train & val
    told = "5 groups of images: 4 (16 images) for training, 1 (4 images) for validation"
    assert told in capsys.readouterr().out
    divide_by_name(names, Division(0.25), str)
    assert "groups of" not in capsys.readouterr().out


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_groups_larger_than_what_is_wanted(fraction):
    names = [f"{'long' if i < 6 else 'short'}_{i}.png" for i in range(9)]
    parts = divide_by_name(names, Division(fraction, re.compile(r"_\d+$")), str)
    assert set(map(len, parts)) == {3, 6}
    for separator, what in ((r"^", "all are of one group"), (r"_never", "no two share one")):
        with pytest.raises(UserError, match=f"--group-by-prefix .*{what}: give what"):
            divide_by_name(names, Division(0.2, re.compile(separator)), str)


def test_division_that_leaves_nothing(read, content):
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:3]
    with pytest.raises(UserError, match="1 images cannot be divided"):
        divide(read(content), Division(0.2))
