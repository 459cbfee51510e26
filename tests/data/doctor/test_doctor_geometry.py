"""Boxes and masks: their limits, and agreement with pycocotools on what can be decoded."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from flatten_det.data.doctor import faults
from flatten_det.data.doctor.annotations import box_array, box_faults
from flatten_det.data.doctor.instances import mask_fault

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
FULL = 40 * 30


def found_in(boxes, sizes):
    found = box_faults(np.array(boxes, float), np.array(sizes, float))
    return [(kind, rows.tolist()) for kind, rows in found]


def test_good_boxes_are_taken_as_they_are():
    good = [[1, 2.5, 3, 4], [0, -1.5, 1e300, 1]]
    assert box_array(good).tolist() == good
    assert box_array([]).shape == (0, 4)


@pytest.mark.parametrize(
    "bad",
    [None, 3, [], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, True], [1, 2, 3, None]]
    + [[1, 2, 3, [4]], [1, 2, 3, float("nan")], [1, -float("inf"), 3, 4], [10**400, 1, 2, 3]],
)
def test_bad_boxes_leave_the_good_ones_alone(bad):
    boxes = box_array([[1, 2, 3, 4], bad, [5, 6, 7, 8]])
    assert boxes[[0, 2]].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert np.isnan(boxes[1]).all()


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 40, 30], None),
        ([-1, -1, 42, 32], None),  # Rounded.
        ([39.5, 29.5, 1, 1], None),
        ([0, 0, 41.5, 30], faults.BOX_CROSSES_BORDER),
        ([-1.5, 0, 10, 30], faults.BOX_CROSSES_BORDER),
        ([0, 25, 10, 7], faults.BOX_CROSSES_BORDER),
        ([40, 0, 5, 5], faults.BOX_OUTSIDE),
        ([0, 30, 5, 5], faults.BOX_OUTSIDE),
        ([-9, 0, 9, 5], faults.BOX_OUTSIDE),
        ([1e308, 0, 1e308, 5], faults.BOX_OUTSIDE),
        ([5, 5, 0, 5], faults.BOX_EMPTY),
        ([5, 5, 5, 0.5], faults.BOX_EMPTY),
        ([0, 0, 0, 0], faults.BOX_EMPTY),
        ([5, 5, 5, -1], faults.BOX_NEGATIVE),
        ([np.nan] * 4, faults.BOX_INVALID),
    ],
)
def test_limits_of_boxes(box, kind):
    # Beside a good one, so that a fault is that of the right row.
    found = found_in([[1, 1, 2, 2], box], [[40, 30]] * 2)
    assert found == ([] if kind is None else [(kind, [1])])


def test_unknown_image_size():
    found = found_in([[500, 1, 2, 2], [1, 1, -2, 2]], np.full((2, 2), np.nan))
    assert found == [(faults.BOX_NEGATIVE, [1])]


def rle(counts, size=(30, 40)):
    return {"size": list(size), "counts": counts}


BROKEN_POLYGONS = [
    *([[1, 1, 2, 2]], [[1, 1, 2, 2, 3]], [[1, 1, 2, 2, 3, 5, 7]], [[]], [1, 1, 2, 2, 3, 5]),
    *([[1, 1, 2, 2, 3, last]] for last in (float("nan"), "5", 10**400)),
]
BROKEN_RUNS = [
    *([100, FULL], [-100, FULL + 100], [100.0, FULL - 100]),
    *(None, "é", "oooooooooooooooo", "o", ""),
]
BROKEN = [
    *BROKEN_POLYGONS,
    *map(rle, BROKEN_RUNS),
    *(rle([0, FULL], size) for size in ((30, 40, 1), (-30, -40))),
    *({"counts": [0, FULL]}, "a mask", 7),
]


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([[0, 0, 40, 0, 40, 30]], None),
        ([[-1, 0, 41, 0, 40, 30.5]], None),  # Rounded.
        ([[0, 0, 9, 0, 9, 9], [20, 20, 25, 20, 25, 25]], None),
        ([[41, 0, 50, 0, 50, 9]], faults.MASK_OUTSIDE),
        ([[0, -9, 9, -9, 9, -1]], faults.MASK_OUTSIDE),
        ([[30, 0, 50, 0, 50, 9]], faults.MASK_CROSSES_BORDER),
        ([[1, 1, 5, 5, 9, 9]], faults.MASK_EMPTY),
        (rle([0, FULL]), None),
        (rle([100, 50, FULL - 150]), None),
        (rle([FULL]), faults.MASK_EMPTY),
        (rle([0, FULL], size=(40, 30)), faults.MASK_SIZE),
        *((segmentation, faults.MASK_BROKEN) for segmentation in BROKEN),
    ],
)
def test_faults_of_masks(segmentation, kind):
    fault = mask_fault(segmentation, IMAGE)
    assert (fault and fault[0]) == kind


def test_mask_over_the_border():
    over = [[30, 0, 50, 0, 50, 9]]
    _, said = mask_fault(over, IMAGE)
    assert said == "has a polygon over the border: x 30 to 50, y 0 to 9, image 40x30"
    of_unknown_size = {"id": 1, "file_name": "a.jpg"}
    assert mask_fault(over, of_unknown_size) is None
    assert mask_fault(rle([0, 12], size=(3, 4)), of_unknown_size) is None


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
        assert kind == faults.MASK_BROKEN
