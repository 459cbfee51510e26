"""Annotation files and images are found in the layouts that tools export."""

import os
from pathlib import Path

import pytest
from custom_folder import make_custom_split, write_json

from flatten_det.data.preparation.coco_file import (
    find_annotation_files,
    find_image_folder,
    read_coco_file,
)
from flatten_det.errors import UserError


def lay_out(root: Path, annotations: dict[str, str], images: dict[str, str], prefix="") -> Path:
    """Write splits: where their annotations go, and where their images."""
    for count, split in enumerate(annotations, start=1):
        content = make_custom_split(root / images[split], count, prefix)
        write_json(root / annotations[split], content)
    return root


# Annotation files and image folders of training, validation and, perhaps, test.
LAYOUTS = {
    "coco": (
        ["annotations/instances_train2017.json", "annotations/instances_val2017.json"],
        ["train2017", "val2017"],
    ),
    "roboflow": (
        [f"{split}/_annotations.coco.json" for split in ("train", "valid", "test")],
        ["train", "valid", "test"],
    ),
    "one image folder": (["training.json", "validation.json"], ["images", "images"]),
    "images below": (
        ["labels/my-train-set.json", "labels/my-val-set.json"],
        ["images/train", "images/val"],
    ),
    "beside": (["train.json", "val.json"], ["", ""]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["", "day1/cam2/"])
def test_layouts(tmp_path, layout, prefix):
    splits = ("train", "val", "test")
    annotations, images = (dict(zip(splits, names, strict=False)) for names in LAYOUTS[layout])
    lay_out(tmp_path, annotations, images, prefix)
    write_json(tmp_path / "package.json", {"name": "not annotations"})
    found = find_annotation_files(tmp_path, {})
    assert found == {split: tmp_path / annotations[split] for split in ("train", "val")}
    for split, path in found.items():
        folder = find_image_folder(tmp_path, read_coco_file(path), split)
        assert folder == tmp_path / images[split]


def test_single_file_is_for_training(tmp_path):
    lay_out(tmp_path, {"train": "result.json"}, {"train": "images"})
    assert find_annotation_files(tmp_path, {}) == {"train": tmp_path / "result.json"}


def test_instances_go_before_keypoints(tmp_path):
    names = ("instances_train2017.json", "person_keypoints_train2017.json")
    for name in names:
        lay_out(tmp_path, {"train": f"annotations/{name}"}, {"train": "train2017"})
    assert find_annotation_files(tmp_path, {})["train"].name == names[0]


def test_known_files_are_not_looked_for(tmp_path):
    for name in ("a_train.json", "b_train.json", "c_val.json"):
        lay_out(tmp_path, {"train": name}, {"train": "images"})
    with pytest.raises(UserError, match=r"2 annotation files may be meant for train .*--train-ann"):
        find_annotation_files(tmp_path, {})
    known = {"train": tmp_path / "a_train.json"}
    assert find_annotation_files(tmp_path, known) == {**known, "val": tmp_path / "c_val.json"}


@pytest.mark.parametrize("name", [None, "val.json", "test.json"])
def test_nothing_to_train_on(tmp_path, name):
    if name:
        lay_out(tmp_path, {"x": name}, {"x": "images"})
    with pytest.raises(UserError, match="no annotation file for training"):
        find_annotation_files(tmp_path, {})


def test_what_cannot_be_read_is_named(tmp_path):
    """Where nothing else is found, it may have been meant; named like annotations, it was."""
    (tmp_path / "_annotations.coco.json").write_bytes('"\u00c4pfel"'.encode("latin-1"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(
        UserError, match=r"coco\.json is not valid JSON: it is not UTF-8.*is a named pipe"
    ):
        find_annotation_files(tmp_path, {})
    with pytest.raises(UserError, match=r"pipe\.json is a named pipe"):
        read_coco_file(tmp_path / "pipe.json")
    (tmp_path / "train.json").write_text('{"images": [')
    assert find_annotation_files(tmp_path, {}) == {"train": tmp_path / "train.json"}


def test_missing_images_are_counted_and_named(tmp_path):
    root = lay_out(tmp_path, {"train": "train.json"}, {"train": "images"})
    content = make_custom_split(root / "images", 6)
    file = read_coco_file(write_json(root / "train.json", content))
    (root / "images" / "photo 5.png").unlink()
    with pytest.raises(UserError, match=r"1 of the 6 images .* not in .*images: photo 5\.png"):
        find_image_folder(root, file, "train")
    for path in (root / "images").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"image photo 0\.png.* is nowhere in it"):
        find_image_folder(root, file, "train")


def test_equal_copies_of_the_images(tmp_path):
    root = lay_out(tmp_path, {"train": "train.json"}, {"train": "originals"})
    make_custom_split(root / "resized", 1)
    file = read_coco_file(root / "train.json")
    with pytest.raises(UserError, match=r"lie in 2 folders .*--train-images"):
        find_image_folder(root, file, "train")
    (root / "resized").rename(root / "train")
    assert find_image_folder(root, file, "train") == root / "train"


def test_links_in_a_circle(tmp_path):
    root = lay_out(tmp_path / "data", {"train": "train.json"}, {"train": "../elsewhere"})
    (root / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    file = read_coco_file(root / "train.json")
    assert find_image_folder(root, file, "train") == root / "images"
