"""Confusion of pixels, measures per class, and the band of boundaries."""

import numpy as np
import pytest
import torch
from mmseg.evaluation import IoUMetric

from flatten_det.lab.evaluation.pixels import (
    PixelCounts,
    boundary_band,
    class_measures,
    pixel_confusion,
)


def test_by_hand():
    truth = np.array([[0, 0, 1, 1], [0, 1, 255, 255]])
    predicted = np.array([[0, 1, 1, 1], [0, 0, 0, 1]])
    confusion = pixel_confusion(truth, predicted, 2)
    assert confusion.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    measures = class_measures(confusion)
    assert measures["iou"] == pytest.approx([0.5, 0.5])
    assert measures["accuracy"] == pytest.approx([2 / 3, 2 / 3])
    assert measures["precision"] == pytest.approx([2 / 3, 2 / 3])
    assert measures["pixels"].tolist() == [3, 3]


def test_a_class_that_is_nowhere_is_no_number():
    measures = class_measures(pixel_confusion(np.zeros((2, 2), int), np.zeros((2, 2), int), 2))
    assert measures["iou"][0] == 1
    assert np.isnan([measures[key][1] for key in ("iou", "accuracy", "precision")]).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_mmseg(seed):
    """With labels beyond the classes, true and predicted ones."""
    random = np.random.default_rng(seed)
    truth = random.choice([0, 1, 2, 3, 9, 255], (40, 50))
    predicted = np.where(
        random.random(truth.shape) < 0.6, truth % 255, random.integers(0, 6, truth.shape)
    )
    areas = IoUMetric.intersect_and_union(torch.tensor(predicted), torch.tensor(truth), 4, 255)
    expected = IoUMetric.total_area_to_metrics(*areas, ["mIoU", "mFscore"])
    measures = class_measures(pixel_confusion(truth, predicted, 4))
    for key, name in (("iou", "IoU"), ("accuracy", "Acc"), ("precision", "Precision")):
        assert measures[key] == pytest.approx(expected[name], abs=1e-6)


def test_band_of_boundaries():
    """1 % of the diagonal, at least a pixel, on both sides."""
    labels = np.zeros((20, 20), int)
    labels[:, 10:] = 1
    assert np.flatnonzero(boundary_band(labels)[0]).tolist() == [9, 10]
    large = np.kron(labels, np.ones((15, 15), int))  # diagonal 424
    assert np.flatnonzero(boundary_band(large)[0]).tolist() == list(range(146, 154))
    assert not boundary_band(np.ones((5, 5), int)).any()


def test_counts_of_several_images():
    counts = PixelCounts(2)
    truth = np.zeros((20, 20), int)
    truth[:, 10:] = 1
    at_boundary, inside = truth.copy(), truth.copy()
    at_boundary[:, 9] = 1
    inside[0, :4] = 1
    assert counts.add(truth, at_boundary) == pytest.approx((0.05, (180 / 200 + 200 / 220) / 2))
    assert counts.add(truth, inside)[0] == pytest.approx(0.01)
    assert counts.confusion[:2, :2].tolist() == [[376, 24], [0, 400]]
    assert counts.boundary() == pytest.approx({"share_of_errors": 20 / 24, "share_of_pixels": 0.1})


def test_an_image_that_is_ignored_as_a_whole():
    counts = PixelCounts(2)
    assert np.isnan(counts.add(np.full((4, 4), 255), np.zeros((4, 4), int))).all()
    assert counts.boundary() == {"share_of_errors": None, "share_of_pixels": None}
