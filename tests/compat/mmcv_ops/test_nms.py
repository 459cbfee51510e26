import math

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms, bbox_overlaps, line_nms, nms, nms_match, soft_nms


def random_boxes(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * 60
    size = torch.rand(n, 2, generator=generator) * 40 + 1
    # Distinct scores: ties may be kept in any order.
    scores = (torch.randperm(n, generator=generator) + 1) / (n + 1)
    return torch.cat([corner, corner + size], dim=1), scores


def overlap(a, b, offset, mode="iou"):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    inter = max(width, 0) * max(height, 0)
    area_a = (a[2] - a[0] + offset) * (a[3] - a[1] + offset)
    area_b = (b[2] - b[0] + offset) * (b[3] - b[1] + offset)
    return inter / (area_a if mode == "iof" else area_a + area_b - inter)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_overlaps_of_all_pairs_and_of_aligned_pairs(mode, offset):
    first, second = random_boxes(9, 0)[0], random_boxes(9, 1)[0]
    expected = torch.tensor(
        [[overlap(a, b, offset, mode) for b in second.tolist()] for a in first.tolist()]
    )
    found = bbox_overlaps(first, second[:5], mode, offset=offset)
    torch.testing.assert_close(found, expected[:, :5])
    aligned = bbox_overlaps(first, second, mode, aligned=True, offset=offset)
    torch.testing.assert_close(aligned, expected.diagonal())


def test_boxes_without_area_overlap_nothing():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert bbox_overlaps(point, point).tolist() == [[0.0]]
    assert bbox_overlaps(torch.zeros(0, 4), point).shape == (0, 1)


def brute_force_groups(boxes, scores, is_match):
    """Each kept box with the boxes it suppressed, all by falling score."""
    boxes = boxes.tolist()
    left = sorted(range(len(boxes)), key=lambda i: -float(scores[i]))
    groups = []
    while left:
        top, rest = left[0], left[1:]
        matched = [i for i in rest if is_match(boxes[top], boxes[i])]
        groups.append([top, *matched])
        left = [i for i in rest if i not in matched]
    return groups


def brute_force_soft_nms(boxes, scores, weight, min_score, offset):
    boxes, scores = boxes.tolist(), dict(enumerate(scores.tolist()))
    kept = []
    while scores:
        top = max(scores, key=scores.get)
        kept.append((top, scores.pop(top)))
        for i in list(scores):
            scores[i] *= weight(overlap(boxes[top], boxes[i], offset))
            if scores[i] < min_score:
                del scores[i]
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_nms_keeps_the_boxes_of_a_brute_force_search(threshold, offset):
    boxes, scores = random_boxes(120)
    groups = brute_force_groups(boxes, scores, lambda a, b: overlap(a, b, offset) > threshold)
    dets, inds = nms(boxes, scores, threshold, offset=offset)
    assert inds.tolist() == [group[0] for group in groups]
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], dim=1)[inds])


def test_nms_offset_changes_what_touches():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 9]])
    scores = torch.tensor([0.9, 0.8])  # IoU 16 / 36 without, 25 / 50 with the offset
    assert nms(boxes, scores, 0.47, offset=0)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.47, offset=1)[1].tolist() == [0]


def test_nms_filters_by_score_and_count():
    boxes, scores = random_boxes(80)
    expected = [i for i in nms(boxes, scores, 0.5)[1].tolist() if scores[i] > 0.3]

    # Dropping the low scores first changes nothing, because they never suppress a higher one.
    inds = nms(boxes, scores, 0.5, score_threshold=0.3, max_num=7)[1]
    assert len(expected) > 7
    assert inds.tolist() == expected[:7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_takes_every_float_dtype(dtype):
    boxes, scores = random_boxes(50)
    boxes, scores = boxes.round().to(dtype), scores.to(dtype)
    inds = nms(boxes, scores, 0.5)[1]
    assert inds.tolist() == nms(boxes.float(), scores.float(), 0.5)[1].tolist()


def test_nms_and_soft_nms_without_boxes():
    for dets, inds in (
        nms(torch.zeros(0, 4), torch.zeros(0), 0.5),
        soft_nms(torch.zeros(0, 4), torch.zeros(0)),
    ):
        assert dets.shape == (0, 5)
        assert inds.shape == (0,)
        assert inds.dtype == torch.long


def test_nms_takes_numpy():
    boxes, scores = random_boxes(20)
    dets, inds = nms(boxes.numpy(), scores.numpy(), 0.5)
    assert isinstance(dets, np.ndarray)
    assert inds.tolist() == nms(boxes, scores, 0.5)[1].tolist()


def test_batched_nms_never_mixes_classes():
    boxes, scores = random_boxes(150)
    classes = torch.arange(150) % 3
    expected = []
    for c in range(3):
        of_class = (classes == c).nonzero().squeeze(1)
        groups = brute_force_groups(
            boxes[of_class], scores[of_class], lambda a, b: overlap(a, b, 0) > 0.4
        )
        expected += [int(of_class[group[0]]) for group in groups]
    expected.sort(key=lambda i: -float(scores[i]))

    dets, keep = batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.4))
    assert keep.tolist() == expected
    torch.testing.assert_close(dets[:, :4], boxes[keep])

    # Above split_thr, mmcv goes class by class.
    split = dict(type="nms", iou_threshold=0.4, split_thr=10)
    assert batched_nms(boxes, scores, classes, split)[1].tolist() == expected


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms_lowers_scores_like_the_loop(method, offset):
    boxes, scores = random_boxes(60)
    weight = {
        "naive": lambda v: 0.0 if v >= 0.3 else 1.0,
        "linear": lambda v: 1 - v if v >= 0.3 else 1.0,
        "gaussian": lambda v: math.exp(-v * v / 0.5),
    }[method]
    expected = brute_force_soft_nms(boxes, scores, weight, min_score=0.05, offset=offset)
    dets, inds = soft_nms(
        boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method, offset=offset
    )
    assert 1 < len(expected) < 60
    assert inds.tolist() == [i for i, _ in expected]
    torch.testing.assert_close(dets[:, :4], boxes[inds])
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]))


def test_soft_nms_leaves_its_input_alone():
    boxes, scores = random_boxes(30)
    boxes_before, scores_before = boxes.clone(), scores.clone()
    soft_nms(boxes, scores, method="gaussian")
    assert torch.equal(boxes, boxes_before)
    assert torch.equal(scores, scores_before)


def test_nms_match_groups_the_suppressed_boxes():
    boxes, scores = random_boxes(60)
    expected = brute_force_groups(boxes, scores, lambda a, b: overlap(a, b, 0) >= 0.3)
    groups = nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.3)
    assert [group.tolist() for group in groups] == expected
    assert any(len(group) > 2 for group in expected)


def close_lanes(a, b, overlap):
    """Whether two lanes' mean distance over the rows that both have is below ``overlap``."""
    rows = []
    for lane in (a, b):
        first = int(lane[2] * (len(lane) - 6) + 0.5)
        rows.append(set(range(first, min(first + int(lane[4]), len(lane) - 5))))
    shared = rows[0] & rows[1]
    return bool(shared) and sum(abs(a[5 + r] - b[5 + r]) for r in shared) < overlap * len(shared)


@pytest.mark.parametrize("rows", [72, 9])
@pytest.mark.parametrize("top_k", [100, 3])
def test_line_nms(rows, top_k):
    generator = torch.Generator().manual_seed(0)
    lanes = torch.rand(30, 5 + rows, generator=generator, dtype=torch.float64)
    lanes[:, 4] *= rows
    lanes[:, 5:] += 20 * torch.rand(30, 1, generator=generator, dtype=torch.float64)
    scores = torch.rand(30, generator=generator, dtype=torch.float64)
    keep, count, parent = line_nms(lanes, scores, 1.5, top_k)
    kept, expected_parent = [], torch.zeros(30, dtype=torch.long)
    order = scores.argsort(descending=True).tolist()
    for n, i in enumerate(order):
        if expected_parent[i] == 0 and len(kept) < top_k:
            kept.append(i)
            close = [j for j in order[n + 1 :] if close_lanes(lanes[i], lanes[j], 1.5)]
            expected_parent[[i, *close]] = len(kept)
    assert 0 < len(kept) < 30
    assert keep.tolist() == kept + [0] * (30 - len(kept))
    assert count == len(kept)
    assert torch.equal(parent, expected_parent)


def test_line_nms_of_nothing():
    keep, count, parent = line_nms(torch.zeros(0, 77), torch.zeros(0), 5.0, 4)
    assert keep.shape == parent.shape == (0,)
    assert count == 0
