"""COCO's numbers per class, best thresholds, and matches as arrays."""

import contextlib
import copy
import io

import numpy as np
import pytest
from coco_cases import make_results, make_truth, random_case
from pycocotools.cocoeval import COCOeval

from flatten_det.lab.evaluation.detections import best_threshold, evaluate_detections, mean_of

A, B = (0, 0, 10, 10), (100, 100, 10, 10)


def of_pycocotools(truth, results, iou_type="bbox") -> np.ndarray:
    """The twelve numbers that COCOeval sums up."""
    with contextlib.redirect_stdout(io.StringIO()):
        measured = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return measured.stats


@pytest.mark.parametrize("seed", range(3))
def test_the_numbers_are_those_of_coco(seed):
    truth, results = random_case(seed)
    expected = of_pycocotools(truth, results)
    found = evaluate_detections(truth, results, "bbox", max_detections=(1, 10, 100))
    means = [mean_of(each) for each in found.measures.values()]
    assert means == pytest.approx(expected[[*range(6), 8]], abs=1e-9)
    assert found.curves[0].mean() == pytest.approx(expected[1])
    assert found.curves[1].mean() == pytest.approx(expected[0])
    assert 0.1 < expected[0] < 0.9


def test_masks_have_their_own_area():
    """A thin diagonal's box is medium-sized, its mask small."""
    truth = make_truth([(1, (0, 0, 40, 40))], 1)
    thin = [[0, 0, 2, 0, 40, 38, 40, 40, 38, 40, 0, 2]]
    truth.anns[1].update(segmentation=thin, area=80)
    mask = truth.annToRLE(truth.anns[1])
    results = [{**make_results((1, (0, 0, 40, 40), 0.9))[0], "segmentation": mask}]
    found = evaluate_detections(truth, results, "segm")
    assert found.measures["ap"] == pytest.approx([1.0])
    assert found.measures["ap_small"] == pytest.approx([1.0])
    assert np.isnan([found.measures[f"ap_{size}"] for size in ("medium", "large")]).all()


def test_results_are_left_as_they_are():
    truth, results = random_case(0, images=3)
    before = copy.deepcopy(results)
    evaluate_detections(truth, results, "bbox")
    assert results == before


def test_categories_and_images_asked_for():
    """In their order; what is in other images does not count."""
    truth = make_truth([(1, A), (2, B), (2, B, 2)], 3, images=2)
    results = make_results((1, A, 0.9))
    found = evaluate_detections(truth, results, "bbox", [3, 2, 1], [1])
    assert np.isnan(found.measures["ap"][0])
    assert found.measures["ap"][1:] == pytest.approx([0, 1])
    assert found.matches.counts().tolist() == [0, 1, 1]
    assert found.matches.images == [1]
    assert mean_of(found.measures["ap"]) == pytest.approx(0.5)


def test_other_thresholds_of_iou():
    """AP is the mean over those asked for, whether or not 0.5 is among them."""
    truth = make_truth([(1, A)], 1)
    results = make_results((1, (0, 0, 10, 8), 0.9))  # IoU 0.8
    found = evaluate_detections(truth, results, "bbox", ious=[0.7, 0.9])
    assert found.measures["ap"] == pytest.approx([0.5])
    assert found.measures["ap50"] == pytest.approx([1.0])
    assert np.isnan(found.measures["ap75"]).all()


def test_no_predictions():
    truth = make_truth([(1, A), (2, B)])
    found = evaluate_detections(truth, [], "bbox")
    assert found.measures["ap"].tolist() == found.measures["ar"].tolist() == [0, 0]
    assert found.matches.scores.shape == (0,)
    assert found.matches.own.shape == (0, 2)


def test_no_objects():
    truth = make_truth([])
    found = evaluate_detections(truth, make_results((1, A, 0.9)), "bbox")
    assert np.isnan(found.measures["ap"]).all()
    assert np.isnan(mean_of(found.measures["ap"]))
    assert found.matches.matched.tolist() == [-1]


def test_matches_are_in_order_of_score_and_know_their_results():
    truth = make_truth([(1, A), (1, B)], 1)
    results = make_results((1, B, 0.3), (1, A, 0.9), (1, A, 0.5))
    matches = evaluate_detections(truth, results, "bbox").matches
    assert matches.scores.tolist() == [0.9, 0.5, 0.3]
    assert matches.ids.tolist() == [1, 2, 0]
    assert matches.matched.tolist() == [0, -1, 1]
    assert [matches.object_ids[n] for n in (0, 1)] == [1, 2]


def test_best_threshold():
    scores, right = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    best = best_threshold(scores, right, objects=2)
    assert best == pytest.approx({"threshold": 0.7, "f1": 0.8, "precision": 2 / 3, "recall": 1})
    assert best_threshold(scores, ~right & False, objects=2) is None


def test_a_threshold_does_not_part_equal_scores():
    """To take the right one alone would be better, and cannot be had."""
    best = best_threshold(np.array([0.5, 0.5, 0.2]), np.array([True, False, False]), objects=1)
    assert best["threshold"] == 0.5
    assert best["f1"] == pytest.approx(2 / 3)
