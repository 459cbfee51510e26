"""``panopticapi`` as MMDetection uses it: ids as colours, and panoptic quality."""

import math

import numpy as np
import pytest
from panopticapi.evaluation import OFFSET, VOID, PQStat
from panopticapi.utils import id2rgb, rgb2id

CATEGORIES = {1: {"isthing": 1}, 2: {"isthing": 1}, 3: {"isthing": 0}, 4: {"isthing": 0}}


def test_ids_and_colours():
    ids = np.random.default_rng(0).integers(0, 256**3, (7, 5))
    colours = id2rgb(ids)
    assert colours.dtype == np.uint8
    assert colours.shape == (7, 5, 3)
    np.testing.assert_array_equal(rgb2id(colours), ids)
    assert id2rgb(70_000) == [112, 17, 1]
    assert rgb2id([112, 17, 1]) == 112 + 17 * 256 + 65_536 == 70_000
    assert rgb2id(np.array([255, 255, 255], np.uint8)) == 256**3 - 1
    assert rgb2id(np.full((1, 1, 3), VOID, np.uint8)) == VOID
    assert ids.max() < OFFSET


def test_quality_by_hand():
    stat = PQStat()
    stat[1].tp, stat[1].iou, stat[1].fp, stat[1].fn = 2, 1.6, 1, 3
    stat[2].fn = 4
    stat[3].tp, stat[3].iou = 1, 0.9
    overall, each = stat.pq_average(CATEGORIES, isthing=None)
    assert each[1] == pytest.approx({"pq": 1.6 / 4, "sq": 0.8, "rq": 2 / 4})
    assert each[2] == each[4] == {"pq": 0, "sq": 0, "rq": 0}
    # Category 4 does not occur and does not count.
    assert overall == pytest.approx(
        {"pq": (0.4 + 0 + 0.9) / 3, "sq": (0.8 + 0.9) / 3, "rq": (0.5 + 1) / 3, "n": 3}
    )
    things, _ = stat.pq_average(CATEGORIES, isthing=True)
    stuff, _ = stat.pq_average(CATEGORIES, isthing=False)
    assert things["pq"] == pytest.approx(0.2)
    assert stuff == pytest.approx({"pq": 0.9, "sq": 0.9, "rq": 1, "n": 1})


def test_parts_add_up_to_the_whole():
    first, second = PQStat(), PQStat()
    first[1].tp, first[1].iou = 1, 0.7
    second[1].fp = 2
    second[3].fn = 1
    first += second
    assert first[1].quality() == pytest.approx({"pq": 0.35, "sq": 0.7, "rq": 0.5})
    assert first[3].fn == 1


def test_nothing_to_evaluate_has_no_quality():
    overall, _ = PQStat().pq_average(CATEGORIES, isthing=False)
    assert overall["n"] == 0
    assert math.isnan(overall["pq"])
