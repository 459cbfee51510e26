"""Boxes as arrays, and their limits."""

import numpy as np
import pytest

from flatten_det.data.doctor import faults as kinds
from flatten_det.data.doctor.annotations import box_array, box_faults


def test_good_boxes_are_taken_as_they_are():
    boxes = box_array([[1, 2.5, 3, 4], [0, 0, 1e9, 1]])
    assert boxes.tolist() == [[1, 2.5, 3, 4], [0, 0, 1e9, 1]]
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
        ([0, 0, 41.5, 30], kinds.BOX_CROSSES_BORDER),
        ([-1.5, 0, 10, 30], kinds.BOX_CROSSES_BORDER),
        ([0, 25, 10, 7], kinds.BOX_CROSSES_BORDER),
        ([40, 0, 5, 5], kinds.BOX_OUTSIDE),
        ([0, 30, 5, 5], kinds.BOX_OUTSIDE),
        ([-9, 0, 9, 5], kinds.BOX_OUTSIDE),
        ([1e308, 0, 1e308, 5], kinds.BOX_OUTSIDE),
        ([5, 5, 0, 5], kinds.BOX_EMPTY),
        ([5, 5, 5, 0.5], kinds.BOX_EMPTY),
        ([0, 0, 0, 0], kinds.BOX_EMPTY),
        ([5, 5, 5, -1], kinds.BOX_NEGATIVE),
        ([np.nan] * 4, kinds.BOX_INVALID),
    ],
)
def test_limits(box, kind):
    # Beside a good one, so that a fault is that of the right row.
    boxes = np.array([[1, 1, 2, 2], box], float)
    found = [(k, rows.tolist()) for k, rows in box_faults(boxes, np.array([[40, 30]] * 2, float))]
    assert found == ([] if kind is None else [(kind, [1])])


def test_unknown_image_size():
    boxes = np.array([[500, 1, 2, 2], [1, 1, -2, 2]], float)
    found = [(k, rows.tolist()) for k, rows in box_faults(boxes, np.full((2, 2), np.nan))]
    assert found == [(kinds.BOX_NEGATIVE, [1])]
