"""Non-maximum suppression: ``nms``, ``softnms`` and ``nms_match``.

Boxes are (N, 4) ``x1, y1, x2, y2``; widths and heights are ``x2 - x1 + offset``.
"""

import torch
import torchvision


def nms(boxes, scores, iou_threshold, offset):
    """Return the indices (K,) of the kept boxes, best score first.

    A box goes when its IoU with a kept, better box is above ``iou_threshold``.
    """
    dtype = torch.promote_types(boxes.dtype, torch.float32)
    boxes = boxes.to(dtype)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    return torchvision.ops.nms(boxes, scores.to(dtype), iou_threshold)


def softnms(boxes, scores, dets, iou_threshold, sigma, min_score, method, offset):
    """Soft-NMS (Bodla et al., 2017): lower the scores of overlapping boxes instead of dropping them.

    Args:
        boxes: (N, 4).
        scores: (N,).
        dets: (N, 5), filled in place with the K kept boxes and their new scores, best first.
        iou_threshold: IoU from which ``method`` 0 and 1 act.
        sigma: width of the Gaussian of ``method`` 2.
        min_score: a box whose lowered score falls below it is dropped.
        method: 0 naive (score 0), 1 linear (times 1 - IoU), 2 Gaussian (times exp(-IoU² / sigma)).
        offset: 0 or 1.

    Returns:
        (K,) indices of the kept boxes, best lowered score first.
    """
    inds = torch.arange(boxes.size(0), device=boxes.device)
    kept = []
    while inds.numel():
        top = int(scores.argmax())
        box, kept_ind = boxes[top], inds[top]
        dets[len(kept), :4] = box
        dets[len(kept), 4] = scores[top]
        kept.append(kept_ind)

        iou = _iou_with(box, boxes, offset)
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
        matched = _iou_with(boxes[0], boxes, offset=0) >= iou_threshold
        matched[0] = True
        groups.append(inds[matched].tolist())
        boxes, inds = boxes[~matched], inds[~matched]
    return groups


def _iou_with(box, boxes, offset):
    """IoU (N,) of one box (4,) with boxes (N, 4); 0 for two boxes without area."""
    size = (boxes[:, 2:] - boxes[:, :2] + offset).clamp(min=0)
    box_area = (box[2:] - box[:2] + offset).clamp(min=0).prod()
    overlap = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2]) + offset
    inter = overlap.clamp(min=0).prod(1)
    union = box_area + size.prod(1) - inter
    return inter / union.clamp(min=torch.finfo(union.dtype).tiny)
