"""The assignment of all objects at once is MMDetection's, object by object."""

import pytest
import torch
from mmdet.models.task_modules import MaxIoUAssigner
from mmdet.registry import TASK_UTILS

from flatten_det.train.run import BatchedMaxIoUAssigner, use_our_components


@pytest.mark.parametrize("num_gts", [0, 1, 7])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_pos_iou": 0.5},
        {"match_low_quality": False},
        {"gt_max_assign_all": False},
        {"neg_iou_thr": (0.1, 0.3)},
    ],
    ids=str,
)
def test_assignments_are_mmdetections(options, num_gts):
    options = {"pos_iou_thr": 0.6, "neg_iou_thr": 0.4, **options}
    generator = torch.Generator().manual_seed(num_gts)
    # Few values, so that boxes are the best of several objects and objects have several best boxes.
    overlaps = torch.randint(0, 8, (num_gts, 40), generator=generator) / 10
    overlaps[1:2] = 0  # An object that no box touches.
    labels = torch.arange(num_gts) + 3
    expected, found = (
        kind(**options).assign_wrt_overlaps(overlaps, labels)
        for kind in (MaxIoUAssigner, BatchedMaxIoUAssigner)
    )
    for name in ("gt_inds", "labels", "max_overlaps"):
        a, b = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_outside_of_a_training_mmdetection_is_as_it_was():
    cfg = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5}
    with use_our_components():
        assert type(TASK_UTILS.build(cfg)) is BatchedMaxIoUAssigner
    assert type(TASK_UTILS.build(cfg)) is MaxIoUAssigner
