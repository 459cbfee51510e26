"""Annotation files with mistakes are refused in one line; what is only left out is filled in."""

import json
from copy import deepcopy

import pytest
from custom_folder import CATEGORIES, make_custom_split, write_json

from flatten_det.datasets.preparation.coco_file import completed, read_coco_file
from flatten_det.datasets.preparation.coco_split import divide
from flatten_det.engine.errors import UserError


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


def test_good_file(read, content):
    file = read(content)
    assert file.classes == tuple(CATEGORIES.values())
    assert file.without_masks() == 0
    assert completed(file, file.path.parent) == (content, [])


def change(*keys_and_value):
    *keys, last, value = keys_and_value

    def apply(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("categories", []), "its categories are empty"),
        (
            change("categories", 1, "name", ""),
            r"1 of 3 categories have no name.*number 2 .*\(id 3\)",
        ),
        (change("categories", 1, "id", 7), "categories share an id: 7"),
        (change("categories", 1, "name", "o'range"), "categories share a name: o'range"),
        (change("images", []), "it names no images"),
        (change("images", 4, "file_name", 5), "1 of 20 images have no file_name.*number 5"),
        (change("images", 4, "id", "3"), "images share an id: 3"),
        (change("images", 4, "width", 0), "width or height that is no size"),
        (change("annotations", []), "it has no annotations"),
        (
            change("annotations", 3, "image_id", 99),
            "1 of 60 annotations have no image_id that is in",
        ),
        (
            change("annotations", 3, "category_id", 5),
            "have no category_id that is in its categories",
        ),
        (change("annotations", 3, "id", 1), "annotations share an id: 1"),
        (change("annotations", 3, "bbox", [1, 2, 3]), "have no bbox of four numbers"),
        (change("annotations", 3, "bbox", [1, 2, 3, None]), "have no bbox of four numbers"),
        (change("annotations", 3, "area", "big"), "have an area that is no number"),
        (change("annotations", 3, 17), "1 of 60 annotations have no id"),
        (change("images", "none"), "is no COCO file of objects"),
    ],
)
def test_mistakes(read, content, spoil, message):
    spoil(content)
    with pytest.raises(UserError, match=rf"a\.json.*{message}") as error:
        read(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.png", "a/../../b.png", "C:\\a.png", "..\\a.png", "http://x/a.png"]
)
def test_file_names_that_leave_the_folder(read, content, name):
    content["images"][0]["file_name"] = name
    with pytest.raises(UserError, match="1 file names leave the image folder: "):
        read(content)


@pytest.mark.parametrize("text", ["", '{"images": [', "[" * 100_000, "\xff"])
def test_what_is_no_json(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        read_coco_file(path)


def test_annotations_without_masks_are_counted(read, content):
    content["annotations"][0]["segmentation"] = []
    del content["annotations"][1]["segmentation"]
    assert read(content).without_masks() == 2


def test_what_exporters_leave_out_is_filled_in(read, content, made):
    bare = deepcopy(content)
    for image in bare["images"]:
        del image["width"], image["height"]
    for index, annotation in enumerate(bare["annotations"]):
        del annotation["iscrowd"], annotation["area"]
        annotation["id"] = index
    full, added = completed(read(bare), made[0])
    assert added == [
        "annotation ids from 1 on",
        "area (that of the box)",
        "iscrowd (0)",
        "width and height of images",
    ]
    assert full["images"] == content["images"]
    for annotation, original in zip(full["annotations"], content["annotations"], strict=True):
        _, _, width, height = original["bbox"]
        assert annotation == {**original, "area": width * height}


def test_division_keeps_images_together(read, content):
    file = read(content)
    train, val = divide(file, 0.2)
    assert (len(train["images"]), len(val["images"])) == (16, 4)
    for part in (train, val):
        assert part["categories"] == content["categories"]
        ids = {image["id"] for image in part["images"]}
        assert {a["image_id"] for a in part["annotations"]} == ids
    assert len(train["annotations"]) + len(val["annotations"]) == len(content["annotations"])


def test_division_does_not_depend_on_the_order(read, content):
    _, val = divide(read(content), 0.2)
    shuffled = {**content, "images": content["images"][::-1]}
    _, again = divide(read(shuffled), 0.2)
    assert sorted(map(json.dumps, again["images"])) == sorted(map(json.dumps, val["images"]))


def test_division_that_leaves_nothing(read, content):
    content["images"] = content["images"][:1]
    content["annotations"] = content["annotations"][:3]
    with pytest.raises(UserError, match="1 images cannot be divided"):
        divide(read(content), 0.2)
