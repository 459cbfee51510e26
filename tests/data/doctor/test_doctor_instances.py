"""Faults planted into a COCO file of instances and its images: each is found, in its place, alone."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shapes_patient import only

from flatten_det.data.doctor import faults
from flatten_det.data.doctor.check import check_annotations

FILE = "annotations/instances_train.json"

# What is planted into annotation 2, and what is said of it; test_doctor_geometry.py has all kinds of boxes.
IN_ANNOTATIONS = [
    (faults.BOX_INVALID, {"bbox": [1, 2, float("nan"), 4]}, "the box [1, 2, nan, 4], image 64x64"),
    (faults.BOX_INVALID, {"bbox": None}, "the box None"),
    (faults.BOX_INVALID, {"bbox": [10**400, 2, 3, 4]}, "the box [1000"),
    (faults.BOX_NEGATIVE, {"bbox": [30, 30, -5, 8]}, "the box [30, 30, -5, 8]"),
    (faults.BOX_OUTSIDE, {"bbox": [64, 0, 5, 8]}, "the box [64, 0, 5, 8], image 64x64"),
    (faults.BOX_EMPTY, {"bbox": [30, 30, 0, 8]}, "the box [30, 30, 0, 8]"),
    (faults.BOX_CROSSES_BORDER, {"bbox": [60, 30, 9, 8]}, "the box [60, 30, 9, 8]"),
    (faults.UNKNOWN_IMAGE, {"image_id": 999}, "an image that is not listed"),
    (faults.UNKNOWN_IMAGE, {"image_id": [1]}, "an image that is not listed"),
    (faults.UNKNOWN_CATEGORY, {"category_id": 77}, "category 77"),
    (faults.UNKNOWN_CATEGORY, {"category_id": {}}, "category {}"),
    (faults.MALFORMED_ENTRY, {"area": None}, "no number as area"),
    (faults.MASK_MISSING, {"segmentation": []}, "no segmentation"),
]


@pytest.mark.parametrize(("kind", "change", "said"), IN_ANNOTATIONS)
def test_planted_into_an_annotation(patient, kind, change, said):
    with patient.annotations() as content:
        content["annotations"][1] |= change
    for found in (patient.findings("instances"), patient.quick_findings("instances")):
        finding = only(found, kind)
        assert said in finding.message
        assert finding.message.startswith("annotation 2 of image")
        assert (finding.id, finding.file) == (2, str(patient.path(FILE)))


def changed(key, index, **change):
    return lambda content: content[key][index].update(change)


def copied(key, index, **change):
    return lambda content: content[key].append({**content[key][index], **change})


def added(key, entry):
    return lambda content: content[key].append(entry)


def reverse_categories(content):
    content["categories"].reverse()


LEAVES = "leaves the image folder"
HEXAGON = {"id": 7, "name": "hexagon"}
IN_FILES = [
    ("DUPLICATE_ANNOTATION_ID", changed("annotations", 4, id=2), 2, "annotation id 2 occurs 2 tim"),
    ("DUPLICATE_IMAGE_ID", copied("images", 2, file_name="b.jpg"), 2, "image id 2 occurs 2 times"),
    ("DUPLICATE_FILE_NAME", copied("images", 2, id="x"), "000002.jpg", "000002.jpg occurs 2 times"),
    ("DUPLICATE_CATEGORY", copied("categories", 0), 1, "category id 1 occurs 2 times"),
    ("MISSING_CATEGORY", changed("categories", 5, name="Cross"), "cross", "class cross is not in"),
    ("IGNORED_CATEGORY", added("categories", HEXAGON), 7, "category 7 (hexagon) is no class of"),
    ("CATEGORY_ORDER", reverse_categories, None, "label 0: cross in the file, circle in the con"),
    ("FILE_NAME_LEAVES", changed("images", 2, file_name="../x"), 2, f"image 2 (../x) {LEAVES}"),
    ("FILE_NAME_LEAVES", changed("images", 2, file_name="/etc/x"), 2, f"image 2 (/etc/x) {LEAVES}"),
    ("MALFORMED_ENTRY", added("images", 3), None, "image number 9 of the file"),
    ("MALFORMED_ENTRY", added("images", {"id": 12}), 12, "image 12 has no file_name"),
    ("MALFORMED_ENTRY", changed("images", 2, width=None), 2, "image 2 (000002.jpg) has no width"),
    ("MALFORMED_ENTRY", added("categories", {"id": 9}), 9, "has no name"),
    ("MALFORMED_ENTRY", added("annotations", []), None, "is no JSON object"),
]


@pytest.mark.parametrize(("kind", "plant", "id_", "said"), IN_FILES)
def test_planted_into_the_file(patient, kind, plant, id_, said):
    with patient.annotations() as content:
        plant(content)
    # Some bring others along: a category that is missing under one name is too much under another.
    found = [f for f in patient.quick_findings("instances") if f.kind == getattr(faults, kind)]
    assert [finding.id for finding in found][:1] == [id_]
    assert said in found[0].message
    assert found[0].file == str(patient.path(FILE))


def test_files_outside_of_the_folder_are_not_opened(patient, monkeypatch):
    with patient.annotations() as content:
        content["images"][0]["file_name"] = "../../secret.jpg"
    opened, true_open = [], Image.open

    def recording_open(path, *args, **kwargs):
        opened.append(str(path))
        return true_open(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", recording_open)
    only(patient.findings("instances"), faults.FILE_NAME_LEAVES)
    assert len(set(opened)) == 7 + 5
    assert all("secret" not in path for path in opened)


MATCHED = [1, -3, 2**63, "7"]
MISREAD = [0, "0", "a0-x", 10**400]


@pytest.mark.parametrize("id_", MATCHED + MISREAD)
def test_annotation_ids_that_an_evaluation_misreads(patient, id_):
    """The rule is what pycocotools makes of perfect predictions; a training does not mind."""
    for split in ("train", "val"):
        with patient.annotations(split=split) as content:
            content["annotations"] = content["annotations"][:1]
            content["annotations"][0] |= {"id": id_, "bbox": [1, 1, 9, 9]}
    truth = COCO()
    truth.dataset = content
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        result = truth.loadRes([{**content["annotations"][0], "id": 1, "score": 1.0}])
        evaluation = COCOeval(truth, result, "bbox")
        with contextlib.suppress(ValueError, OverflowError):
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found.append(evaluation.stats[0] > 0.99)
    assert found == [True] if id_ in MATCHED else found in ([], [False])
    findings = [f for f in patient.quick_findings("instances") if f.kind == faults.MISREAD_ID]
    assert len(findings) == (id_ in MISREAD)
    if findings:
        assert findings[0].data_set == "val, test"
        assert "means no match to pycocotools" in findings[0].message


def test_ids_of_mixed_types_cannot_be_sorted(patient):
    with patient.annotations(split="val") as content:
        content["images"].append({**content["images"][0], "id": "x1", "file_name": "b.jpg"})
        content["categories"].append({"id": "seven", "name": "hexagon"})
    found = [f.message for f in patient.quick_findings("instances") if f.kind == faults.MISREAD_ID]
    assert found == [
        "image ids are numbers and texts, such as 0 and 'x1'",
        "category ids are numbers and texts, such as 1 and 'seven'",
    ]
    with patient.annotations(split="val") as content:
        for image in content["images"]:
            image["id"] = f"{image['id']}"
        for annotation in content["annotations"]:
            annotation["image_id"] = f"{annotation['image_id']}"
        content["categories"].pop()
    assert patient.quick_findings("instances") == []


@pytest.mark.parametrize("id_", [1.5, True, None, [1]])
def test_ids_of_other_types(patient, id_):
    with patient.annotations() as content:
        content["annotations"][1]["id"] = id_
    finding = only(patient.quick_findings("instances"), faults.MALFORMED_ENTRY)
    assert "has no id that is a whole number or a text" in finding.message


def test_root_of_a_roboflow_export(patient):
    """Named like a class, it would have labels of its own."""
    with patient.annotations() as content:
        root = {"id": 0, "name": "circle", "supercategory": "none"}
        content["categories"].insert(0, root)
    finding = only(patient.quick_findings("instances"), faults.ROOT_CATEGORY)
    assert "category 0 (circle), which has no object, is the root" in finding.message
    with patient.annotations() as content:
        content["annotations"][0]["category_id"] = 0
    assert patient.quick_findings("instances")[0].kind == faults.DUPLICATE_CATEGORY


def test_names_of_windows(patient):
    """A file of that very name is one."""
    images = patient.path("train/images")
    (images / "sub").mkdir()
    (images / "000002.jpg").rename(images / "sub/000002.jpg")
    with patient.annotations() as content:
        content["images"][2]["file_name"] = "sub\\000002.jpg"
    for found in (patient.quick_findings("instances"), patient.findings("instances")):
        finding = only(found, faults.FILE_NAME_BACKSLASHES)
        assert "image 2 (sub\\000002.jpg) is written with backslashes" in finding.message
    (images / "sub/000002.jpg").rename(images / "sub\\000002.jpg")
    assert patient.findings("instances") == []


def test_category_without_objects(patient):
    with patient.annotations() as content:
        objects = content["annotations"]
        content["annotations"] = [a for a in objects if a["category_id"] != 3]
    finding = only(patient.quick_findings("instances"), faults.UNUSED_CATEGORY)
    assert finding.message == "category 3 (triangle) has no object"


def test_classes_chosen_by_the_config(patient):
    """Fewer classes than categories, in their order, are legitimate."""
    found = patient.quick_findings("instances", metainfo=dict(classes=("circle", "square")))
    assert {finding.kind for finding in found} == {faults.IGNORED_CATEGORY}


def test_iscrowd_is_needed_for_the_evaluation_only(patient):
    for split in ("train", "val"):
        with patient.annotations(split=split) as content:
            del content["annotations"][0]["iscrowd"]
    (finding,) = patient.quick_findings("instances")
    assert finding.data_set == "val, test"
    assert finding.message.endswith("has no number as iscrowd")


def test_masks_are_not_asked_of_a_detector_of_boxes(patient):
    with patient.annotations() as content:
        content["annotations"][1]["segmentation"] = []
    cfg = patient.config("instances")
    cfg.model = dict()
    assert not any(checked.findings for checked in check_annotations(cfg))


NO_COCO = "is no COCO file: it needs lists of images, annotations, categories"
BROKEN_FILES = {
    "empty object": ("{", "is not valid JSON"),
    "deep": ("[" * 100_000, "is not valid JSON"),
    "list": ("[]", NO_COCO),
    "dict of dicts": (json.dumps({"images": [], "annotations": {}, "categories": []}), NO_COCO),
    "utf-8-sig": (
        None,
        "begins with a byte order mark (UTF-8 with BOM): save it as UTF-8 without one",
    ),
    "utf-16": (None, "begins with the byte order mark of UTF-16: save it as UTF-8"),
    "utf-32": (None, "begins with the byte order mark of UTF-32: save it as UTF-8"),
    "latin-1": (None, "is not UTF-8 (byte 0xc4 in line 2): save it as UTF-8"),
    "missing": (None, "not found"),
    "pipe": (None, "is a named pipe, not a file"),
}


@pytest.mark.parametrize("what", BROKEN_FILES)
def test_broken_annotation_file(patient, what):
    """The text, or the encoding, or what there is in place of a file."""
    path, (text, said) = patient.path(FILE), BROKEN_FILES[what]
    content = {"note": "\u00c4pfel", **json.loads(path.read_text())}
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif text is not None:
        path.write_text(text)
    elif what != "missing":
        path.write_bytes(json.dumps(content, indent=0, ensure_ascii=False).encode(what))
    for found in (patient.findings("instances"), patient.quick_findings("instances")):
        finding = only(found, faults.ANNOTATION_FILE)
        assert finding.message.startswith(f"annotation file {path} {said}")


def test_empty_file(patient):
    with patient.annotations() as content:
        content["images"] = content["annotations"] = []
    found = patient.findings("instances")
    assert found[0].kind == faults.NO_IMAGES
    assert {finding.kind for finding in found[1:]} == {faults.UNUSED_CATEGORY}


def cut(part):
    return lambda path: os.truncate(path, int(part * path.stat().st_size))


def resized(*size):
    return lambda path: Image.open(path).resize(size).save(path)


# What is done to an image file, which only the whole check sees, and what is said of it.
IN_IMAGES = [
    (faults.IMAGE_MISSING, lambda path: path.unlink(), ""),
    (faults.IMAGE_UNREADABLE, cut(0), "cannot be decoded"),
    (faults.IMAGE_UNREADABLE, cut(0.3), "cannot be decoded"),
    (faults.IMAGE_UNREADABLE, cut(0.9), "cannot be decoded"),
    (faults.IMAGE_SIZE, resized(60, 64), "3 (000003.jpg) is 60x64, not 64x64 as annotated"),
    (faults.IMAGE_TOO_LARGE, resized(640, 640), "409600 pixels"),
]


@pytest.mark.parametrize(("kind", "spoil", "said"), IN_IMAGES)
def test_image_files(patient, monkeypatch, kind, spoil, said):
    path = patient.path("train/images/000003.jpg")
    spoil(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    assert patient.quick_findings("instances") == []
    finding = only(patient.findings("instances"), kind)
    assert (finding.file, finding.id) == (str(path), 3)
    assert said in finding.message


@pytest.mark.parametrize(
    ("kind", "segmentation"),
    [
        (faults.MASK_BROKEN, {"size": [64, 64], "counts": "no run lengths"}),
        (faults.MASK_SIZE, {"size": [64, 65], "counts": [10, 64 * 65 - 10]}),
        (faults.MASK_OUTSIDE, [[70, 1, 80, 1, 80, 9]]),
    ],
)
def test_masks_that_only_the_whole_check_sees(patient, kind, segmentation):
    with patient.annotations() as content:
        content["annotations"][1]["segmentation"] = segmentation
    assert patient.quick_findings("instances") == []
    assert only(patient.findings("instances"), kind).id == 2


def test_polygons_of_healthy_objects(patient):
    with patient.annotations() as content:
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
            annotation["segmentation"] = [np.ravel(corners).tolist()]
    assert patient.findings("instances") == []
