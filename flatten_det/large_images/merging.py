"""Detections in overlapping tiles, as detections in the image.

An object in the overlap of two tiles is found twice, and one on a tile's border is found there in part. So,
among boxes of one class:

1. Boxes that no inner border cuts pass an NMS.
2. A cut box goes where a whole one covers most of it, unless that is much less sure.
3. What is left of cut boxes is of objects that no tile shows as a whole. Cut boxes that agree where their
   tiles overlap are parts of one object, and joined.
4. All pass a last NMS.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torchvision.ops import nms

from .run_lengths import encode_in_image
from .tiles import Window

# Boxes that overlap by more (intersection over union) show the same object, as in mmdet's NMS of views.
SAME_OBJECT = 0.5
# A whole box replaces a cut one of which it covers more than this part...
COVERED = 0.5
# ... if its score is at least this part of the cut one's.
AS_SURE = 0.5
# A box is cut if it ends within this part of the tile's side from a border, or within MARGIN pixels.
MARGIN_PART = 0.01
MARGIN = 2


def move_to_image(found: InstanceData, window: Window, height: int, width: int) -> InstanceData:
    """A tile's detections, in the pixels of the image.

    Args:
        found: ``bboxes`` (n, 4), ``scores``, ``labels`` and maybe ``masks`` (n, h, w) in the tile, on any
            device.
        window: the tile.
        height: of the image.
        width: of the image.

    Returns:
        The same on the CPU, masks as a list of COCO's RLE; and ``windows`` (n, 4), the tile of each, and
        ``cut`` (n,), whether a border of the tile inside the image cuts it.
    """
    left, top = window.left, window.top
    boxes = found.bboxes.cpu() + torch.tensor([left, top, left, top])
    windows = boxes.new_tensor(window).expand(len(boxes), 4)
    moved = InstanceData(
        bboxes=boxes,
        scores=found.scores.cpu(),
        labels=found.labels.cpu(),
        windows=windows,
        cut=_cut_by_inner_border(boxes, window, height, width),
    )
    if "masks" in found:
        moved.masks = [
            encode_in_image(mask.cpu().numpy(), left, top, height, width) for mask in found.masks
        ]
    return moved


def merge(found: Sequence[InstanceData], max_count: int) -> InstanceData:
    """One detection for each object.

    Args:
        found: of each tile, as :func:`move_to_image` gives them.
        max_count: how many to keep, those with the best scores.

    Returns:
        ``bboxes``, ``scores``, ``labels`` and, if ``found`` has them, ``masks`` (COCO's RLE), best first.
    """
    every = InstanceData.cat(list(found))
    classes = every.labels.unique()
    merged = [_merge_class(every[every.labels == label]) for label in classes] or [every]
    merged = InstanceData.cat(merged)
    merged = merged[merged.scores.argsort(descending=True)[:max_count]]
    del merged.windows, merged.cut
    return merged


def _merge_class(found: InstanceData) -> InstanceData:
    whole = _nms(found[~found.cut])
    cut = found[found.cut]
    cut = cut[~_is_replaced(cut, whole)]
    return _nms(InstanceData.cat([whole, _join_parts(cut)]))


def _nms(found: InstanceData) -> InstanceData:
    return found[nms(found.bboxes, found.scores, SAME_OBJECT)]


def _cut_by_inner_border(boxes: Tensor, window: Window, height: int, width: int) -> Tensor:
    margin = max(MARGIN, MARGIN_PART * max(window.right - window.left, window.bottom - window.top))
    return (
        ((boxes[:, 0] <= window.left + margin) & (window.left > 0))
        | ((boxes[:, 1] <= window.top + margin) & (window.top > 0))
        | ((boxes[:, 2] >= window.right - margin) & (window.right < width))
        | ((boxes[:, 3] >= window.bottom - margin) & (window.bottom < height))
    )


def _is_replaced(cut: InstanceData, whole: InstanceData) -> Tensor:
    """Which of ``cut`` a box of ``whole`` stands for."""
    shared = _area(_intersection(cut.bboxes[:, None], whole.bboxes[None]))
    covered = shared > COVERED * _area(cut.bboxes)[:, None]
    sure = whole.scores >= AS_SURE * cut.scores[:, None]
    return (covered & sure).any(1)


def _join_parts(cut: InstanceData) -> InstanceData:
    """Join cut boxes of one object: their common hull, the best score, all their masks."""
    if len(cut) == 0:
        return cut
    overlap = _intersection(cut.windows[:, None], cut.windows[None])  # [n, n, 4]
    ours = _intersection(cut.bboxes[:, None], overlap)
    shared = _area(_intersection(ours, ours.transpose(0, 1)))
    union = _area(ours) + _area(ours).T - shared
    # At least a pixel: boxes that only touch the overlap say nothing.
    same = (shared > SAME_OBJECT * union) & (shared >= 1)
    count, of_part = connected_components(same.numpy(), directed=False)
    joined = []
    for number in range(count):
        parts = cut[torch.from_numpy(of_part == number)]
        best = parts[int(parts.scores.argmax())]
        low, high = parts.bboxes[:, :2].amin(0), parts.bboxes[:, 2:].amax(0)
        best.bboxes = torch.cat([low, high])[None]
        if "masks" in parts:
            best.masks = [_union(parts.masks)]
        joined.append(best)
    return InstanceData.cat(joined)


def _union(masks: list[dict[str, Any]]) -> dict[str, Any]:
    return coco_mask.merge(masks) if len(masks) > 1 else masks[0]


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """(..., 4), (..., 4) -> (..., 4), of size 0 where there is none."""
    low = torch.maximum(boxes[..., :2], others[..., :2])
    high = torch.minimum(boxes[..., 2:], others[..., 2:])
    return torch.cat([low, torch.maximum(low, high)], -1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
