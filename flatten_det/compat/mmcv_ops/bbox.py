"""``bbox_overlaps``: IoU and IoF of boxes ``x1, y1, x2, y2``."""

import torch

from .precision import at_least_float32

IOU, IOF = 0, 1


def bbox_overlaps(bboxes1, bboxes2, ious, mode, aligned, offset):
    """Write the overlaps of bboxes1 (M, 4) and bboxes2 (N, 4) to ``ious``: (M, N), or (M,) for the
    pairs of equal index where ``aligned``.

    ``mode`` 0 is intersection over union, 1 intersection over the first box's area.
    """
    bboxes1, bboxes2 = at_least_float32(bboxes1), at_least_float32(bboxes2)
    if not aligned:
        bboxes1 = bboxes1[:, None]
    ious.copy_(overlaps(bboxes1, bboxes2, mode, offset))


def overlaps(boxes1, boxes2, mode, offset):
    """Overlap of boxes (..., 4) with boxes (..., 4), broadcast; sides are ``x2 - x1 + offset``.

    0, not NaN, where the boxes have no area.
    """
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    inter = (high - low + offset).clamp(min=0).prod(-1)
    whole = _area(boxes1, offset)
    if mode == IOU:
        whole = whole + _area(boxes2, offset) - inter
    return inter / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def _area(boxes, offset):
    return (boxes[..., 2:] - boxes[..., :2] + offset).clamp(min=0).prod(-1)
