"""Faults planted into COCO's panoptic format."""

import numpy as np
import pytest
from PIL import Image
from shapes_patient import only

from flatten_det.compat.panoptic_api import id2rgb, rgb2id
from flatten_det.data.doctor import faults

NAME = "train/panoptic/000002.png"


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        (faults.UNKNOWN_CATEGORY, {"category_id": 77}, "has category 77, which is not listed"),
        (faults.BOX_NEGATIVE, {"bbox": [9, 9, -2, 3]}, "has the box [9, 9, -2, 3], image 64x64"),
        (faults.BOX_INVALID, {"bbox": None}, "has the box None"),
        (faults.MALFORMED_ENTRY, {"area": "big"}, "has no number as area"),
    ],
)
def test_planted_into_a_segment(patient, kind, change, said):
    with patient.annotations("panoptic") as content:
        content["annotations"][2]["segments_info"][1] |= change
    finding = only(patient.findings("panoptic"), kind)
    assert said in finding.message
    assert finding.message.startswith("segment 2 of image 2 ")
    assert only(patient.quick_findings("panoptic"), kind) == finding


def annotated(**change):
    return lambda content: content["annotations"][2].update(change)


def added(image_id):
    entry = {"image_id": image_id, "file_name": "x.png", "segments_info": []}
    return lambda content: content["annotations"].append(entry)


def repeat_an_id(content):
    content["annotations"][2]["segments_info"][1]["id"] = 1


OF_IMAGE = "the annotation of image 2"


@pytest.mark.parametrize(
    ("kind", "plant", "said"),
    [
        ("DUPLICATE_ANNOTATION_ID", repeat_an_id, "segment id 1 occurs 2 times in image 2"),
        ("DUPLICATE_ANNOTATION_ID", added(2), "image 2 (000002.jpg) has 2 annotations instead"),
        ("LABEL_MAP_MISSING", lambda c: c["annotations"].pop(2), "has no annotation"),
        ("MALFORMED_ENTRY", annotated(segments_info=None), f"{OF_IMAGE} has no list segments_info"),
        ("MALFORMED_ENTRY", annotated(file_name=None), f"{OF_IMAGE} has no file_name"),
        ("FILE_NAME_LEAVES", annotated(file_name="C:\\x.png"), "leaves the folder of label maps"),
        ("UNKNOWN_IMAGE", added(99), "image 99 has an image that is not listed"),
        ("MALFORMED_ENTRY", lambda c: c["categories"][0].pop("isthing"), "category 1 has no isth"),
    ],
)
def test_planted_into_the_file(patient, kind, plant, said):
    with patient.annotations("panoptic") as content:
        plant(content)
    assert said in only(patient.quick_findings("panoptic"), getattr(faults, kind)).message


@pytest.mark.parametrize("id_", [0, -1, 2**24, "7"])
def test_segment_ids_that_no_label_map_can_show(patient, id_):
    with patient.annotations("panoptic") as content:
        content["annotations"][1]["segments_info"][0]["id"] = id_
    finding = only(patient.quick_findings("panoptic"), faults.MISREAD_ID)
    assert "no number from 1 to 16777215" in finding.message


def test_segment_that_the_map_does_not_show(patient):
    with patient.annotations("panoptic") as content:
        segments = content["annotations"][2]["segments_info"]
        segments.append({**segments[0], "id": 4242})
    finding = only(patient.findings("panoptic"), faults.SEGMENT_MISSING)
    assert finding.message == "segment 4242 of image 2 has no pixel in 000002.png"


def test_segment_that_the_file_does_not_list(patient):
    with patient.image(NAME) as image:
        ids = rgb2id(np.array(image["it"]))
        ids[5, 5] = 70_000
        image["it"] = Image.fromarray(id2rgb(ids))
    finding = only(patient.findings("panoptic"), faults.UNKNOWN_LABEL)
    assert "shows segments that the file does not list: 70000" in finding.message
    assert finding.file == str(patient.path(NAME))


def test_void_pixels_are_no_fault(patient):
    with patient.image(NAME) as image:
        image["it"].putpixel((5, 5), (0, 0, 0))
    assert patient.findings("panoptic") == []


def test_maps_of_another_form(patient):
    original = patient.path(NAME).read_bytes()
    with patient.image(NAME) as image:
        image["it"] = image["it"].resize((66, 64), Image.Resampling.NEAREST)
    finding = only(patient.findings("panoptic"), faults.LABEL_MAP_SIZE)
    assert "is 66x64, the image 64x64" in finding.message
    patient.path(NAME).write_bytes(original)
    with patient.image(NAME) as image:
        image["it"] = image["it"].convert("L")
    only(patient.findings("panoptic"), faults.LABEL_MAP_FORMAT)
    patient.path(NAME).unlink()
    only(patient.findings("panoptic"), faults.LABEL_MAP_MISSING)
