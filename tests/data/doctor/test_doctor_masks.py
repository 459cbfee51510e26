"""Masks: what cannot be decoded, what does not fit, and agreement with pycocotools on what can."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from flatten_det.data.doctor import faults as kinds
from flatten_det.data.doctor.instances import mask_fault

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
FULL = 40 * 30


def rle(counts, size=(30, 40)):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([[0, 0, 40, 0, 40, 30]], None),
        ([[-1, 0, 41, 0, 40, 30.5]], None),  # Rounded.
        ([[0, 0, 9, 0, 9, 9], [20, 20, 25, 20, 25, 25]], None),
        ([[1, 1, 2, 2]], kinds.MASK_BROKEN),
        ([[1, 1, 2, 2, 3]], kinds.MASK_BROKEN),
        ([[1, 1, 2, 2, 3, 5, 7]], kinds.MASK_BROKEN),
        ([[]], kinds.MASK_BROKEN),
        ([1, 1, 2, 2, 3, 5], kinds.MASK_BROKEN),
        ([[1, 1, 2, 2, 3, float("nan")]], kinds.MASK_BROKEN),
        ([[1, 1, 2, 2, 3, "5"]], kinds.MASK_BROKEN),
        ([[1, 1, 2, 2, 3, 10**400]], kinds.MASK_BROKEN),
        ([[41, 0, 50, 0, 50, 9]], kinds.MASK_OUTSIDE),
        ([[0, -9, 9, -9, 9, -1]], kinds.MASK_OUTSIDE),
        ([[30, 0, 50, 0, 50, 9]], kinds.MASK_CROSSES_BORDER),
        ([[1, 1, 5, 5, 9, 9]], kinds.MASK_EMPTY),
        (rle([0, FULL]), None),
        (rle([100, 50, FULL - 150]), None),
        (rle([100, FULL]), kinds.MASK_BROKEN),
        (rle([-100, FULL + 100]), kinds.MASK_BROKEN),
        (rle([100.0, FULL - 100]), kinds.MASK_BROKEN),
        (rle(None), kinds.MASK_BROKEN),
        (rle("é"), kinds.MASK_BROKEN),
        (rle("oooooooooooooooo"), kinds.MASK_BROKEN),
        (rle("o"), kinds.MASK_BROKEN),
        (rle(""), kinds.MASK_BROKEN),
        (rle([FULL]), kinds.MASK_EMPTY),
        (rle([0, FULL], size=(40, 30)), kinds.MASK_SIZE),
        (rle([0, FULL], size=(30, 40, 1)), kinds.MASK_BROKEN),
        (rle([0, FULL], size=(-30, -40)), kinds.MASK_BROKEN),
        ({"counts": [0, FULL]}, kinds.MASK_BROKEN),
        ("a mask", kinds.MASK_BROKEN),
        (7, kinds.MASK_BROKEN),
    ],
)
def test_faults(segmentation, kind):
    fault = mask_fault(segmentation, IMAGE)
    assert (fault and fault[0]) == kind


def test_what_is_said():
    _, said = mask_fault([[30, 0, 50, 0, 50, 9]], IMAGE)
    assert said == "has a polygon over the border: x 30 to 50, y 0 to 9, image 40x30"


def test_image_of_unknown_size():
    image = {"id": 1, "file_name": "a.jpg"}
    assert mask_fault([[30, 0, 500, 0, 500, 9]], image) is None
    assert mask_fault(rle([0, 12], size=(3, 4)), image) is None


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.999])
def test_text_of_pycocotools_is_read_as_it_was_written(share):
    rng = np.random.default_rng(0)
    for size in ((1, 1), (7, 3), (50, 40), (500, 700)):
        mask = np.asfortranarray(rng.random(size) < share, np.uint8)
        mask[-1, -1] = 1
        encoded = coco_mask.encode(mask)
        image = {"width": size[1], "height": size[0]}
        text = encoded["counts"].decode()
        assert mask_fault({"size": list(size), "counts": text}, image) is None
        # A character less is a pixel less, or the middle of a number.
        kind, _ = mask_fault({"size": list(size), "counts": text[:-1]}, image)
        assert kind == kinds.MASK_BROKEN
