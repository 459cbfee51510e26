"""Faults planted into COCO's panoptic format."""

import numpy as np
import pytest
from PIL import Image

from flatten_det.compat.panoptic_api import id2rgb, rgb2id
from flatten_det.data.doctor import faults as kinds


def one(findings, kind):
    assert [finding.kind.name for finding in findings] == [kind.name]
    return findings[0]


def test_nothing_is_wrong_with_the_healthy(patient):
    assert patient.findings("panoptic") == []
    assert patient.quick_findings("panoptic") == []


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (kinds.UNKNOWN_CATEGORY, {"category_id": 77}, "has category 77, which is not listed"),
        (kinds.BOX_NEGATIVE, {"bbox": [9, 9, -2, 3]}, "has the box [9, 9, -2, 3], image 64x64"),
        (kinds.BOX_INVALID, {"bbox": None}, "has the box None"),
        (kinds.MALFORMED_ENTRY, {"area": "big"}, "has no number as area"),
    ],
)
def test_planted_into_a_segment(patient, kind, change, said):
    with patient.annotations("panoptic") as content:
        content["annotations"][2]["segments_info"][1] |= change
    finding = one(patient.findings("panoptic"), kind)
    assert said in finding.message
    assert finding.message.startswith("segment 2 of image 2 ")
    assert one(patient.quick_findings("panoptic"), kind) == finding


@pytest.mark.parametrize(
    ("kind", "plant", "said"),
    [
        (
            kinds.DUPLICATE_ANNOTATION_ID,
            lambda c: c["annotations"][2]["segments_info"][1].update(id=1),
            "segment id 1 occurs 2 times in image 2",
        ),
        (
            kinds.DUPLICATE_ANNOTATION_ID,
            lambda c: c["annotations"].append(
                {"image_id": 2, "file_name": "x.png", "segments_info": []}
            ),
            "image 2 (000002.jpg) has 2 annotations instead of one",
        ),
        (kinds.LABEL_MAP_MISSING, lambda c: c["annotations"].pop(2), "has no annotation"),
        (
            kinds.MALFORMED_ENTRY,
            lambda c: c["annotations"][2].update(segments_info=None),
            "the annotation of image 2 has no list segments_info",
        ),
        (
            kinds.MALFORMED_ENTRY,
            lambda c: c["annotations"][2].pop("file_name"),
            "the annotation of image 2 has no file_name",
        ),
        (
            kinds.FILE_NAME_LEAVES,
            lambda c: c["annotations"][2].update(file_name="C:\\x.png"),
            "leaves the folder of label maps",
        ),
        (
            kinds.UNKNOWN_IMAGE,
            lambda c: c["annotations"].append(
                {"image_id": 99, "file_name": "x.png", "segments_info": []}
            ),
            "image 99 has an image that is not listed",
        ),
        (
            kinds.MALFORMED_ENTRY,
            lambda c: c["categories"][0].pop("isthing"),
            "category 1 has no isthing",
        ),
    ],
)
def test_planted_into_the_file(patient, kind, plant, said):
    with patient.annotations("panoptic") as content:
        plant(content)
    assert said in one(patient.quick_findings("panoptic"), kind).message


NAME = "train/panoptic/000002.png"


def test_segment_that_the_file_does_not_list(patient):
    with patient.image(NAME) as image:
        ids = rgb2id(np.array(image["it"]))
        ids[5, 5] = 70_000
        image["it"] = Image.fromarray(id2rgb(ids))
    finding = one(patient.findings("panoptic"), kinds.UNKNOWN_LABEL)
    assert "shows segments that the file does not list: 70000" in finding.message
    assert finding.file == str(patient.path(NAME))


def test_segment_that_the_map_does_not_show(patient):
    with patient.annotations("panoptic") as content:
        segments = content["annotations"][2]["segments_info"]
        segments.append({**segments[0], "id": 4242})
    finding = one(patient.findings("panoptic"), kinds.SEGMENT_MISSING)
    assert finding.message == "segment 4242 of image 2 has no pixel in 000002.png"


def test_void_pixels_are_no_fault(patient):
    with patient.image(NAME) as image:
        colours = np.array(image["it"])
        colours[5, 5] = 0
        image["it"] = Image.fromarray(colours)
    assert patient.findings("panoptic") == []


def test_map_of_another_size(patient):
    with patient.image(NAME) as image:
        image["it"] = image["it"].resize((66, 64), Image.Resampling.NEAREST)
    assert (
        "is 66x64, the image 64x64"
        in one(patient.findings("panoptic"), kinds.LABEL_MAP_SIZE).message
    )


def test_map_that_is_no_rgb(patient):
    with patient.image(NAME) as image:
        image["it"] = image["it"].convert("L")
    one(patient.findings("panoptic"), kinds.LABEL_MAP_FORMAT)


def test_map_that_is_missing_or_broken(patient):
    patient.path(NAME).unlink()
    one(patient.findings("panoptic"), kinds.LABEL_MAP_MISSING)
    patient.path(NAME).write_bytes(b"no image")
    one(patient.findings("panoptic"), kinds.LABEL_MAP_UNREADABLE)


@pytest.mark.parametrize("id_", [0, -1, 2**24, "7"])
def test_segment_ids_that_no_label_map_can_show(patient, id_):
    with patient.annotations("panoptic") as content:
        content["annotations"][1]["segments_info"][0]["id"] = id_
    (finding,) = patient.quick_findings("panoptic")
    assert finding.kind == kinds.MISREAD_ID
    assert "no number from 1 to 16777215" in finding.message


@pytest.mark.parametrize("orientation", [3, 6])
def test_label_map_that_asks_to_be_turned(patient, orientation):
    """A training obeys, the evaluation does not."""
    path = patient.path("train/panoptic/000002.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(path).save(path, exif=exif)
    (finding,) = patient.findings("panoptic")
    assert finding.kind == kinds.LABEL_MAP_FORMAT
    assert "asks to be turned (EXIF orientation)" in finding.message
