"""Each kind of error by hand, and what mending it gains."""

import numpy as np
import pytest
from coco_cases import make_results, make_truth, random_case

from flatten_det.lab.evaluation.detections import evaluate_detections, mean_of
from flatten_det.lab.evaluation.error_kinds import (
    KINDS,
    RIGHT,
    UNUSED,
    average_precision,
    confusion_matrix,
    find_errors,
    gains,
)

A, B, FAR = (0, 0, 10, 10), (100, 100, 10, 10), (300, 300, 10, 10)
CROWD = (0, 0, 200, 200)
BESIDE_A = (5, 0, 10, 10)  # IoU 1/3
HALF = 51 / 101  # AP of precision 1 up to a recall of 0.5: 51 of the 101 recalls


def analysed(objects, found, classes=2, threshold=-np.inf, images=1):
    matches = evaluate_detections(
        make_truth(objects, classes, images), make_results(*found), "bbox"
    ).matches
    return matches, find_errors(matches, threshold)


def check(objects, found, counts: dict, base: float, gained: dict) -> None:
    classes = max((label for label, *_ in (*objects, *found)), default=2)
    matches, errors = analysed(objects, found, classes)
    assert errors.counts() == dict.fromkeys(KINDS, 0) | counts
    ap, mended = gains(matches)
    assert ap == pytest.approx(base)
    assert mended == pytest.approx(dict.fromkeys(KINDS, 0) | gained)


ONE_OF_THREE = (51 + 50 * 2 / 3) / 101  # AP with a wrong one between two right ones


@pytest.mark.parametrize(
    ("objects", "found", "counts", "base", "gained"),
    [
        # All is right.
        ([(1, A), (2, B)], [(1, A, 0.9), (2, B, 0.8)], {}, 1, {}),
        # The object is not missed: a better place would find it.
        ([(1, A)], [(1, BESIDE_A, 0.9)], {"localisation": 1}, 0, {"localisation": 1}),
        # Class 1 goes from 0 to 1, and class 2, without the wrong one before the right one, from 0.5 to 1.
        (
            *([(1, A), (2, B)], [(2, A, 0.9), (2, B, 0.5)]),
            *({"classification": 1}, 0.25, {"classification": 0.75}),
        ),
        # It is dropped, for what it was about is not known; the object is missed.
        (
            *([(1, A), (2, B)], [(2, BESIDE_A, 0.9), (2, B, 0.5)]),
            *({"both": 1, "missed": 1}, 0.25, {"both": 0.25, "missed": 0.5}),
        ),
        (
            *([(1, A), (1, B)], [(1, A, 0.9), (1, A, 0.8), (1, B, 0.7)]),
            *({"duplicate": 1}, ONE_OF_THREE, {"duplicate": 1 - ONE_OF_THREE}),
        ),
        ([(1, A)], [(1, FAR, 0.9), (1, A, 0.8)], {"background": 1}, 0.5, {"background": 0.5}),
        # Little overlap, IoU 1/19, is background.
        (
            *([(1, A)], [(1, (9, 0, 10, 10), 0.9), (1, A, 0.8)]),
            *({"background": 1}, 0.5, {"background": 0.5}),
        ),
        ([(1, A), (1, B)], [(1, A, 0.9)], {"missed": 1}, HALF, {"missed": 1 - HALF}),
        # Of wrong places the surest alone is mended: the other one is on an object that is found then.
        (
            *([(1, A)], [(1, BESIDE_A, 0.9), (1, BESIDE_A, 0.8)]),
            *({"localisation": 2}, 0, {"localisation": 1}),
        ),
        (
            *([(1, A)], [(1, BESIDE_A, 0.9), (1, A, 0.8)]),
            *({"localisation": 1}, 0.5, {"localisation": 0.5}),
        ),
        # A crowd is one of its own class only.
        (
            *([(1, CROWD, 1, 1), (2, FAR)], [(2, A, 0.9), (2, FAR, 0.8)]),
            *({"background": 1}, 0.5, {"background": 0.5}),
        ),
        # No predictions.
        ([(1, A), (2, B)], [], {"missed": 2}, 0, {"missed": 1}),
        # A class without objects does not count in the mean.
        ([(1, A)], [(1, A, 0.9), (3, FAR, 0.8)], {"background": 1}, 1, {}),
    ],
)
def test_errors_and_what_mending_them_gains(objects, found, counts, base, gained):
    check(objects, found, counts, base, gained)


def test_a_detection_on_a_crowd_is_no_error():
    objects = [(1, CROWD, 1, 1), (1, FAR)]
    found = [(1, A, 0.9), (1, B, 0.8), (1, FAR, 0.7)]
    check(objects, found, {}, 1, {})
    matches, errors = analysed(objects, found, 1)
    assert errors.kinds.tolist() == [UNUSED, UNUSED, RIGHT]
    assert confusion_matrix(matches, errors).tolist() == [[1, 0], [0, 0]]


def test_no_objects():
    matches, errors = analysed([], [(1, A, 0.9)])
    assert errors.counts()["background"] == 1
    base, gained = gains(matches)
    assert np.isnan([base, *gained.values()]).all()
    assert confusion_matrix(matches, errors).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_images_are_apart():
    _, errors = analysed([(1, A), (1, A, 2)], [(1, A, 0.9, 2)], 1, images=2)
    assert errors.found.tolist() == [False, True]
    assert errors.counts()["missed"] == 1


def test_from_a_score_on():
    """What was found by an unsure detection is missed then; AP is of all."""
    objects, found = [(1, A), (1, B)], [(1, A, 0.9), (1, B, 0.2), (1, FAR, 0.1)]
    _, errors = analysed(objects, found, 1, threshold=0.3)
    assert errors.counts() == dict.fromkeys(KINDS, 0) | {"missed": 1}
    _, errors = analysed(objects, found, 1, threshold=0.2)
    assert sum(errors.counts().values()) == 0


@pytest.mark.parametrize("seed", range(4))
def test_ap_before_mending_is_cocos(seed):
    truth, results = random_case(seed)
    found = evaluate_detections(truth, results, "bbox")
    base, gained = gains(found.matches)
    assert base == pytest.approx(mean_of(found.measures["ap50"]), abs=1e-9)
    assert min(gained.values()) > -1e-9
    counts = find_errors(found.matches).counts()
    assert all(counts.values())


def test_average_precision_of_nothing():
    none = np.zeros(0)
    assert average_precision(none, none.astype(bool), 3) == 0
    assert average_precision(none, none.astype(bool), 0) == 1


def test_confusion_matrix():
    """Right, confused, missed, on the background, and a duplicate."""
    objects = [(1, A), (2, B), (2, FAR)]
    found = [(1, A, 0.9), (1, A, 0.8), (1, B, 0.7), (2, (500, 0, 10, 10), 0.6)]
    matrix = confusion_matrix(*analysed(objects, found))
    assert matrix.tolist() == [[1, 0, 0], [1, 0, 1], [1, 1, 0]]


def test_in_the_matrix_an_object_is_confused_once():
    """With the surest."""
    matrix = confusion_matrix(*analysed([(1, A)], [(3, A, 0.5), (2, A, 0.9)], 3))
    assert matrix[0].tolist() == [0, 1, 0, 0]
    assert matrix[3].tolist() == [0, 0, 1, 0]


def test_the_matrix_has_all_objects_and_detections():
    truth, results = random_case(7)
    matches = evaluate_detections(truth, results, "bbox").matches
    errors = find_errors(matches, 0.3)
    matrix = confusion_matrix(matches, errors)
    assert matrix[:-1].sum(1).tolist() == matches.counts().tolist()
    used = errors.kinds != UNUSED
    by_class = np.bincount(matches.labels[used], minlength=matches.classes)
    assert matrix[:, :-1].sum(0).tolist() == by_class.tolist()
    assert np.trace(matrix) == errors.found.sum()
