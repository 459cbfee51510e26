"""Boxes ``x1, y1, x2, y2``: ``bbox_overlaps``, ``nms``, ``softnms``, ``nms_match``; lanes: ``line_nms``.

Boxes are (N, 4); widths and heights are ``x2 - x1 + offset``.
"""

import torch
import torchvision

from .precision import at_least_float32

_IOU = 0


def bbox_overlaps(bboxes1, bboxes2, ious, mode, aligned, offset):
    """Write the overlaps of bboxes1 (M, 4) and bboxes2 (N, 4) to ``ious``: (M, N), or (M,) for the
    pairs of equal index where ``aligned``.

    ``mode`` 0 is intersection over union, 1 intersection over the first box's area.
    """
    bboxes1, bboxes2 = at_least_float32(bboxes1), at_least_float32(bboxes2)
    if not aligned:
        bboxes1 = bboxes1[:, None]
    ious.copy_(_overlaps(bboxes1, bboxes2, mode, offset))


def _overlaps(boxes1, boxes2, mode, offset):
    """Overlap of boxes (..., 4) with boxes (..., 4), broadcast; 0, not NaN, where they have no area."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    inter = (high - low + offset).clamp(min=0).prod(-1)
    whole = _area(boxes1, offset)
    if mode == _IOU:
        whole = whole + _area(boxes2, offset) - inter
    return inter / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def _area(boxes, offset):
    return (boxes[..., 2:] - boxes[..., :2] + offset).clamp(min=0).prod(-1)


def nms(boxes, scores, iou_threshold, offset):
    """Return the indices (K,) of the kept boxes, best score first.

    A box goes when its IoU with a kept, better box is above ``iou_threshold``.
    """
    boxes = at_least_float32(boxes)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision.ops.nms(boxes, scores.to(boxes.dtype), iou_threshold)


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset):
    """Soft-NMS (Bodla et al., 2017): lower the scores of overlapping boxes, drop no box at once.

    Returns the indices (K,) of the kept boxes, best lowered score first; ``dets`` (N, 5) is filled with
    these boxes and scores.

    Args:
        iou_threshold: IoU from which ``method`` 0 and 1 act.
        min_score: a box whose lowered score falls below it is dropped.
        method: 0 naive (score 0), 1 linear (times 1 - IoU), 2 Gaussian (times exp(-IoU² / sigma)).
    """
    inds = torch.arange(boxes.size(0), device=boxes.device)
    kept = []
    while inds.numel():
        top = int(scores.argmax())
        box = boxes[top]
        dets[len(kept), :4] = box
        dets[len(kept), 4] = scores[top]
        kept.append(inds[top])
        iou = _overlaps(box, boxes, _IOU, offset)
        if method == 2:
            scores = scores * torch.exp(-iou.square() / sigma)
        else:
            weight = 1 - iou if method == 1 else torch.zeros_like(iou)
            scores = torch.where(iou >= iou_threshold, scores * weight, scores)
        alive = scores >= min_score
        alive[top] = False
        boxes, scores, inds = boxes[alive], scores[alive], inds[alive]
    return torch.stack(kept) if kept else inds


def nms_match(dets, iou_threshold):
    """Group ``dets`` (N, 5) by NMS: a list of lists of indices, each the kept box and the ones it
    suppressed (IoU at or above ``iou_threshold``), both by falling score."""
    boxes, scores = dets[:, :4], dets[:, 4]
    inds = scores.argsort(descending=True, stable=True)
    boxes = boxes[inds]
    groups = []
    while inds.numel():
        matched = _overlaps(boxes[0], boxes, _IOU, offset=0) >= iou_threshold
        matched[0] = True
        groups.append(inds[matched].tolist())
        boxes, inds = boxes[~matched], inds[~matched]
    return groups


def line_nms_forward(boxes, scores, overlap, top_k):
    """Suppress the lanes that run close to a better one (CLRNet, Zheng et al., 2022).

    A lane goes when its mean distance from a kept, better lane, over the rows that both have, is
    below ``overlap``.

    Args:
        boxes: (N, 5 + R) two class scores, the first row's place from 0 to 1, start x, the number
            of rows, and x in each of R rows.
        scores: (N,).
        top_k: how many lanes to keep at most.

    Returns:
        ``keep`` (N,), the kept lanes' indices, best first, and zeros; how many there are; and
        (N,), for each lane the number, from 1, of the last kept lane that it is close to, or 0.
    """
    order = scores.argsort(descending=True, stable=True)
    lanes = at_least_float32(boxes)[order]
    xs = lanes[:, 5:]
    first = (lanes[:, 2] * (xs.size(1) - 1) + 0.5).long()
    last = first + lanes[:, 4].long() - 1
    row = torch.arange(xs.size(1), device=boxes.device)
    parent = torch.zeros_like(order)
    kept = []
    for i in range(order.numel()):
        if parent[i]:
            continue
        start, end = first.maximum(first[i]), last.minimum(last[i]).clamp(max=xs.size(1) - 1)
        shared = (row >= start.unsqueeze(1)) & (row <= end.unsqueeze(1))
        distance = (xs - xs[i]).abs().masked_fill_(~shared, 0).sum(1)
        close = (distance < overlap * (end - start + 1)) & (start >= 0) & (start <= end)
        close[:i] = False
        close[i] = True
        kept.append(i)
        parent[close] = len(kept)
        if len(kept) == top_k:
            break
    keep = torch.zeros_like(order)
    keep[: len(kept)] = order[kept]
    count = order.new_tensor(min(len(kept), top_k))
    return [keep, count, torch.zeros_like(order).scatter_(0, order, parent)]
