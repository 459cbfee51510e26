import cv2
import numpy as np
import pytest

from flatten_det.data.shapes.options import CLASSES
from flatten_det.data.shapes.render import random_outline


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_size_is_the_longer_side_of_a_box_that_varies(label):
    boxes = []
    for seed in range(20):
        corners = np.concatenate(random_outline(np.random.default_rng(seed), label, 37.5))
        np.testing.assert_allclose(corners.min(axis=0), 0, atol=1e-9)
        assert corners.max() == pytest.approx(37.5)
        assert corners.max(axis=0).min() > 37.5 / 2
        boxes.append(corners.max(axis=0))
    ratios = np.divide(*np.transpose(boxes))
    assert ratios.min() < 0.95
    assert ratios.max() > 1.05


def _area(contour):
    return cv2.contourArea(contour.astype(np.float32))


def test_classes_cover_different_shares_of_their_hull():
    def share(name):
        outline = random_outline(np.random.default_rng(0), CLASSES.index(name), 100)
        hull = cv2.convexHull(outline[0].astype(np.float32))
        return (_area(outline[0]) - sum(map(_area, outline[1:]))) / cv2.contourArea(hull)

    for convex in ("circle", "triangle", "square"):
        assert share(convex) == pytest.approx(1, abs=1e-4)
    assert 0.55 < share("ring") < 0.76  # A hole of 0.5 to 0.65 of the radius.
    assert 0.4 < share("star") < 0.65
    assert 0.55 < share("cross") < 0.85
