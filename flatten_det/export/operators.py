"""Operators of detectors that torch has not and ONNX has: for torch by torchvision, for ONNX by the standard.

Their results have shapes that are known beforehand, which keeps a detector's graph free of sizes that only
the data tell.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor


@torch.library.custom_op("flatten_det::kept_scores", mutates_args=())
def kept_scores(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Scores ``(B, N)`` of the boxes that non-maximum suppression keeps in each image, 0 for the others.

    Args:
        boxes: ``(B, N, 4)`` x1, y1, x2, y2.
        scores: ``(B, N)``; a box without a score above 0 takes no part.
        iou_threshold: a box goes when its IoU with a kept, better box is above it.
        most: boxes of an image to keep at most.
    """
    kept = torch.zeros_like(scores)
    for own_boxes, own_scores, own_kept in zip(boxes, scores, kept, strict=True):
        there = (own_scores > 0).nonzero().squeeze(1)
        best = torchvision.ops.nms(own_boxes[there], own_scores[there], iou_threshold)[:most]
        own_kept[there[best]] = own_scores[there[best]]
    return kept


@kept_scores.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores)


def _onnx_kept_scores(boxes, scores, iou_threshold: float, most: int):
    from onnxscript import opset18 as op

    # Rows of image, class and box; the class is always the first.
    rows = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[0.0]),
    )
    rows = op.Gather(rows, op.Constant(value_ints=[0, 2]), axis=1)
    nothing = op.Mul(scores, op.Constant(value_float=0.0))
    return op.ScatterND(nothing, rows, op.GatherND(scores, rows))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ``custom_translation_table`` that ``torch.onnx.export`` needs for the operators of this file."""
    return {torch.ops.flatten_det.kept_scores.default: _onnx_kept_scores}
