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
from shapes_patient import Patient

from flatten_det.data.doctor import faults as kinds
from flatten_det.data.doctor.check import check_annotations


def one(findings, kind):
    """The only finding, which is of this kind."""
    assert [finding.kind.name for finding in findings] == [kind.name]
    assert findings[0].data_set == "train"
    return findings[0]


def test_nothing_is_wrong_with_the_healthy(patient):
    assert patient.findings("instances") == []
    assert patient.quick_findings("instances") == []


# What is planted into annotations 1 and 2, and what is said of it.
IN_ANNOTATIONS = [
    (kinds.BOX_INVALID, {"bbox": [1, 2, float("nan"), 4]}, "the box [1, 2, nan, 4], image 64x64"),
    (kinds.BOX_INVALID, {"bbox": [1, 2, float("inf"), 4]}, "the box [1, 2, inf, 4]"),
    (kinds.BOX_INVALID, {"bbox": [1, 2, 3]}, "the box [1, 2, 3]"),
    (kinds.BOX_INVALID, {"bbox": None}, "the box None"),
    (kinds.BOX_INVALID, {"bbox": ["1", 2, 3, 4]}, "the box ['1', 2, 3, 4]"),
    (kinds.BOX_INVALID, {"bbox": [10**400, 2, 3, 4]}, "the box [1000"),
    (kinds.BOX_NEGATIVE, {"bbox": [30, 30, -5, 8]}, "the box [30, 30, -5, 8]"),
    (kinds.BOX_OUTSIDE, {"bbox": [64, 0, 5, 8]}, "the box [64, 0, 5, 8], image 64x64"),
    (kinds.BOX_EMPTY, {"bbox": [30, 30, 0, 8]}, "the box [30, 30, 0, 8]"),
    (kinds.BOX_CROSSES_BORDER, {"bbox": [60, 30, 9, 8]}, "the box [60, 30, 9, 8]"),
    (kinds.UNKNOWN_IMAGE, {"image_id": 999}, "an image that is not listed"),
    (kinds.UNKNOWN_IMAGE, {"image_id": [1]}, "an image that is not listed"),
    (kinds.UNKNOWN_CATEGORY, {"category_id": 77}, "category 77"),
    (kinds.UNKNOWN_CATEGORY, {"category_id": {}}, "category {}"),
    (kinds.MALFORMED_ENTRY, {"area": None}, "no number as area"),
    (kinds.MASK_MISSING, {"segmentation": []}, "no segmentation"),
]


@pytest.mark.parametrize(("kind", "change", "said"), IN_ANNOTATIONS)
def test_planted_into_an_annotation(patient, kind, change, said):
    with patient.annotations() as content:
        content["annotations"][1] |= change
    for found in (patient.findings("instances"), patient.quick_findings("instances")):
        finding = one(found, kind)
        assert said in finding.message
        assert finding.message.startswith("annotation 2 of image")
        assert finding.id == 2
        assert finding.file == str(patient.path("annotations/instances_train.json"))


def change_of(content, key, index, **change):
    content[key][index] |= change


@pytest.mark.parametrize(
    ("kind", "plant", "id_", "said"),
    [
        (
            kinds.DUPLICATE_ANNOTATION_ID,
            lambda c: change_of(c, "annotations", 4, id=2),
            2,
            "annotation id 2 occurs 2 times",
        ),
        (
            kinds.DUPLICATE_IMAGE_ID,
            lambda c: c["images"].append({**c["images"][2], "file_name": "copy.jpg"}),
            2,
            "image id 2 occurs 2 times",
        ),
        (
            kinds.DUPLICATE_FILE_NAME,
            lambda c: c["images"].append({**c["images"][2], "id": "again"}),
            "000002.jpg",
            "file name 000002.jpg occurs 2 times",
        ),
        (
            kinds.DUPLICATE_CATEGORY,
            lambda c: c["categories"].append({**c["categories"][0]}),
            1,
            "category id 1 occurs 2 times",
        ),
        (
            kinds.MISSING_CATEGORY,
            lambda c: change_of(c, "categories", 5, name="Cross"),
            "cross",
            "class cross is not in the file",
        ),
        (
            kinds.IGNORED_CATEGORY,
            lambda c: c["categories"].append({"id": 7, "name": "hexagon"}),
            7,
            "category 7 (hexagon) is no class of the config",
        ),
        (
            kinds.CATEGORY_ORDER,
            lambda c: c["categories"].reverse(),
            None,
            "label 0: cross in the file, circle in the config",
        ),
        (
            kinds.FILE_NAME_LEAVES,
            lambda c: change_of(c, "images", 2, file_name="../../secret.jpg"),
            2,
            "image 2 (../../secret.jpg) leaves the image folder",
        ),
        (
            kinds.FILE_NAME_LEAVES,
            lambda c: change_of(c, "images", 2, file_name="/etc/hostname"),
            2,
            "image 2 (/etc/hostname) leaves the image folder",
        ),
        (
            kinds.MALFORMED_ENTRY,
            lambda c: c["images"].append(3),
            None,
            "image number 9 of the file",
        ),
        (
            kinds.MALFORMED_ENTRY,
            lambda c: c["images"].append({"id": 12}),
            12,
            "image 12 has no file_name",
        ),
        (
            kinds.MALFORMED_ENTRY,
            lambda c: c["images"][2].pop("width"),
            2,
            "image 2 (000002.jpg) has no width and height",
        ),
        (kinds.MALFORMED_ENTRY, lambda c: c["categories"].append({"id": 9}), 9, "has no name"),
        (kinds.MALFORMED_ENTRY, lambda c: c["annotations"].append([]), None, "is no JSON object"),
    ],
)
def test_planted_into_the_file(patient, kind, plant, id_, said):
    with patient.annotations() as content:
        plant(content)
    # Some bring others along: a category that is missing under one name is too much under another.
    found = [f for f in patient.quick_findings("instances") if f.kind == kind]
    assert [finding.id for finding in found][:1] == [id_]
    assert said in found[0].message
    assert found[0].file == str(patient.path("annotations/instances_train.json"))


def test_files_outside_of_the_folder_are_not_opened(patient, monkeypatch):
    with patient.annotations() as content:
        content["images"][0]["file_name"] = "../../secret.jpg"
    opened = []
    true_open = Image.open

    def recording_open(path, *args, **kwargs):
        opened.append(str(path))
        return true_open(path, *args, **kwargs)

    monkeypatch.setattr(Image, "open", recording_open)
    one(patient.findings("instances"), kinds.FILE_NAME_LEAVES)
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
    findings = [f for f in patient.quick_findings("instances") if f.kind == kinds.MISREAD_ID]
    assert len(findings) == (id_ in MISREAD)
    if findings:
        assert findings[0].data_set == "val, test"
        assert "means no match to pycocotools" in findings[0].message


def test_ids_of_mixed_types_cannot_be_sorted(patient):
    with patient.annotations(split="val") as content:
        content["images"].append({**content["images"][0], "id": "x1", "file_name": "b.jpg"})
        content["categories"].append({"id": "seven", "name": "hexagon"})
    found = [f.message for f in patient.quick_findings("instances") if f.kind == kinds.MISREAD_ID]
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
    finding = one(patient.quick_findings("instances"), kinds.MALFORMED_ENTRY)
    assert "has no id that is a whole number or a text" in finding.message


def test_root_of_a_roboflow_export(patient):
    """Named like a class, it would have labels of its own."""
    root = {"id": 0, "name": "circle", "supercategory": "none"}
    with patient.annotations() as content:
        content["categories"].insert(0, root)
    finding = one(patient.quick_findings("instances"), kinds.ROOT_CATEGORY)
    assert "category 0 (circle), which has no object, is the root" in finding.message
    with patient.annotations() as content:
        content["annotations"][0]["category_id"] = 0
    assert patient.quick_findings("instances")[0].kind == kinds.DUPLICATE_CATEGORY


def test_names_of_windows(patient):
    """A file of that very name is one."""
    for path in (patient.path("train/images"), patient.path("val/images")):
        (path / "sub").mkdir()
    patient.path("train/images/000002.jpg").rename(patient.path("train/images/sub/000002.jpg"))
    with patient.annotations() as content:
        content["images"][2]["file_name"] = "sub\\000002.jpg"
    for found in (patient.quick_findings("instances"), patient.findings("instances")):
        finding = one(found, kinds.FILE_NAME_BACKSLASHES)
        assert "image 2 (sub\\000002.jpg) is written with backslashes" in finding.message
    patient.path("train/images/sub/000002.jpg").rename(patient.path("train/images/sub\\000002.jpg"))
    assert patient.findings("instances") == []


def test_category_without_objects(patient):
    with patient.annotations() as content:
        objects = content["annotations"]
        content["annotations"] = [a for a in objects if a["category_id"] != 3]
    finding = one(patient.quick_findings("instances"), kinds.UNUSED_CATEGORY)
    assert finding.message == "category 3 (triangle) has no object"


def test_classes_chosen_by_the_config(patient):
    """Fewer classes than categories, in their order, are legitimate."""
    found = patient.quick_findings("instances", metainfo=dict(classes=("circle", "square")))
    assert {finding.kind for finding in found} == {kinds.IGNORED_CATEGORY}


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


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        (
            "utf-8-sig",
            "begins with a byte order mark (UTF-8 with BOM): save it as UTF-8 without one",
        ),
        ("utf-16", "begins with the byte order mark of UTF-16: save it as UTF-8"),
        ("utf-32", "begins with the byte order mark of UTF-32: save it as UTF-8"),
        ("latin-1", "is not UTF-8 (byte 0xc4 in line 2): save it as UTF-8"),
    ],
)
def test_other_encodings(patient, encoding, said):
    path = patient.path("annotations/instances_train.json")
    content = {"note": "\u00c4pfel", **json.loads(path.read_text())}
    path.write_bytes(json.dumps(content, indent=0, ensure_ascii=False).encode(encoding))
    finding = one(patient.quick_findings("instances"), kinds.ANNOTATION_FILE)
    assert finding.message.startswith(f"annotation file {path} {said}")


def test_pipe_in_the_place_of_annotations(patient):
    path = patient.path("annotations/instances_train.json")
    path.unlink()
    os.mkfifo(path)
    finding = one(patient.findings("instances"), kinds.ANNOTATION_FILE)
    assert finding.message == f"annotation file {path} is a named pipe, not a file"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is no COCO file: it needs lists of images, annotations, categories"),
        (json.dumps({"images": [], "annotations": {}, "categories": []}), "is no COCO file"),
    ],
)
def test_broken_annotation_file(patient, text, said):
    path = patient.path("annotations/instances_train.json")
    path.write_text(text)
    finding = one(patient.findings("instances"), kinds.ANNOTATION_FILE)
    assert f"annotation file {path} {said}" in finding.message


def test_missing_annotation_file(patient):
    path = patient.path("annotations/instances_train.json")
    path.unlink()
    finding = one(patient.findings("instances"), kinds.ANNOTATION_FILE)
    assert finding.message == f"annotation file {path} not found"


def test_missing_image_folder_is_one_finding(patient):
    folder = patient.path("train/images")
    folder.rename(patient.path("train/elsewhere"))
    for found in (patient.findings("instances"), patient.quick_findings("instances")):
        assert one(found, kinds.FOLDER_MISSING).file == str(folder)


def test_empty_file(patient):
    with patient.annotations() as content:
        content["images"] = content["annotations"] = []
    found = patient.findings("instances")
    assert found[0].kind == kinds.NO_IMAGES
    assert {finding.kind for finding in found[1:]} == {kinds.UNUSED_CATEGORY}


class TestImages:
    """Faults of the image files, which only the whole check sees."""

    NAME = "train/images/000003.jpg"

    def only(self, patient: Patient, kind):
        assert patient.quick_findings("instances") == []
        finding = one(patient.findings("instances"), kind)
        assert finding.file == str(patient.path(self.NAME))
        assert finding.id == 3
        return finding

    def test_missing(self, patient):
        patient.path(self.NAME).unlink()
        self.only(patient, kinds.IMAGE_MISSING)

    @pytest.mark.parametrize("part", [0, 400, 0.9])
    def test_truncated(self, patient, part):
        content = patient.path(self.NAME).read_bytes()
        patient.path(self.NAME).write_bytes(
            content[: int(part * len(content)) if part < 1 else part]
        )
        assert "cannot be decoded" in self.only(patient, kinds.IMAGE_UNREADABLE).message

    def test_other_size(self, patient):
        with patient.image(self.NAME) as image:
            image["it"] = image["it"].resize((60, 64))
        finding = self.only(patient, kinds.IMAGE_SIZE)
        assert finding.message == "image 3 (000003.jpg) is 60x64, not 64x64 as annotated"

    def test_decompression_bomb(self, patient, monkeypatch):
        with patient.image(self.NAME) as image:
            image["it"] = image["it"].resize((640, 640))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
        assert "409600 pixels" in self.only(patient, kinds.IMAGE_TOO_LARGE).message


class TestMasks:
    """Faults of masks that only the whole check sees."""

    @pytest.mark.parametrize(
        ("kind", "segmentation"),
        [
            (kinds.MASK_BROKEN, [[1, 2, 3, 4]]),
            (kinds.MASK_BROKEN, {"size": [64, 64], "counts": "no run lengths"}),
            (kinds.MASK_BROKEN, {"size": [64, 64], "counts": [10, 20]}),
            (kinds.MASK_SIZE, {"size": [64, 65], "counts": [10, 64 * 65 - 10]}),
            (kinds.MASK_OUTSIDE, [[70, 1, 80, 1, 80, 9]]),
        ],
    )
    def test_planted(self, patient, kind, segmentation):
        with patient.annotations() as content:
            content["annotations"][1]["segmentation"] = segmentation
        assert patient.quick_findings("instances") == []
        finding = one(patient.findings("instances"), kind)
        assert finding.id == 2

    def test_polygons_of_healthy_objects(self, patient):
        with patient.annotations() as content:
            for annotation in content["annotations"]:
                x, y, w, h = annotation["bbox"]
                corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
                annotation["segmentation"] = [np.ravel(corners).tolist()]
        assert patient.findings("instances") == []


def test_workers_find_the_same(patient):
    with patient.annotations() as content:
        content["annotations"][1]["segmentation"] = [[1, 2, 3]]
        content["images"][4]["width"] = 60
    patient.path("train/images/000005.jpg").write_bytes(b"no image")
    patient.path("val/images/000001.jpg").unlink()
    alone = patient.findings("instances", workers=0)
    assert len(alone) > 4
    assert patient.findings("instances", workers=2) == alone
