"""What the graphs of all detectors are made of: maps of images, suppression, the best rows, and refusals.

Non-maximum suppression is an operator: of torchvision for torch, of the standard for ONNX. Its result has a
shape that is known beforehand, which keeps a detector's graph free of sizes that only the data tell.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from mmdet.models.data_preprocessors import DetDataPreprocessor
from torch import Tensor, nn

from ..backbones.base import DenseBackbone
from ..errors import UserError

_INSTEAD = "--backbone exports the backbone of any model"


class DetectorGraph(nn.Module):
    """Backbone and neck, which see of the padding what they do in MMDetection."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_class("data_preprocessor", model.data_preprocessor, (DetDataPreprocessor,))
        self.backbone = model.backbone
        self.neck = model.neck if model.with_neck else nn.Identity()
        self.divisor = model.data_preprocessor.pad_size_divisor
        self.pad_value = model.data_preprocessor.pad_value
        self.masks_padding = isinstance(self.backbone, DenseBackbone) and self.backbone.mask_padding

    @property
    def output_names(self) -> list[str]:
        """Of what ``forward`` returns."""
        return ["boxes", "scores", "labels"]

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """The neck's maps of images ``(B, 3, H, W)``."""
        size = [_ceil_div(length, self.divisor) * self.divisor for length in images.shape[2:]]
        if not self.masks_padding:
            return self.neck(self.backbone(_padded(images, size, self.pad_value)))
        maps = zip(self.backbone(images), self.backbone.strides, strict=True)
        return self.neck(tuple(_padded(own, [_ceil_div(n, s) for n in size]) for own, s in maps))


def _ceil_div(length: int, divisor: int) -> int:
    """``length / divisor``, rounded up; not by ``-(-a // b)``, which ONNX rounds to zero."""
    return (length + divisor - 1) // divisor


def _padded(x: Tensor, size: Sequence[int], value: float = 0) -> Tensor:
    """``(B, C, h, w)`` with a margin at the right and below, up to ``size``."""
    (height, width), (all_height, all_width) = x.shape[2:], size
    return F.pad(x, (0, all_width - width, 0, all_height - height), value=value)


def top(values: Tensor, count: int, missing: float) -> tuple[Tensor, Tensor]:
    """The largest ``count`` of values ``(B, N)`` and their places; ``missing`` beyond N, at place N - 1."""
    last = values.shape[1] - 1
    best, places = F.pad(values, (0, count), value=missing).topk(count)
    return best, places.clamp(max=last)


def rows(x: Tensor, places: Tensor) -> Tensor:
    """``(B, K, 4)``, of ``x (B, N, 4)`` what is at places ``(B, K)``."""
    return x.gather(1, places.unsqueeze(2).expand(-1, -1, 4))


def refusal(what: str) -> str:
    """The message about an option that predicts in another way than the graphs do."""
    return f"{what}, with which no detector can be exported as a whole: {_INSTEAD}"


def check_class(name: str, part: object, known: Iterable[type]) -> None:
    """Refuse a part of another class, subclasses included: they may predict in another way."""
    if type(part) not in known:
        names = ", ".join(sorted(kind.__name__ for kind in known))
        raise UserError(
            f"{name} is a {type(part).__name__}, and what can be exported as a whole is {names}: "
            f"{_INSTEAD}"
        )


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
    """The ``custom_translation_table`` that ``torch.onnx.export`` needs for the operator of this file."""
    return {torch.ops.flatten_det.kept_scores.default: _onnx_kept_scores}
