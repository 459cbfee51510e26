"""Detectors of MMDetection from the image to its boxes, in operations that ONNX has.

What MMDetection's ``predict`` does image by image, with as many rows as it finds, is done here for a batch,
with a fixed number of rows: those beyond what was found have the score 0. Modules and weights are its own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from mmcv.ops import RoIAlign
from mmdet.models.dense_heads import RetinaHead, RPNHead
from mmdet.models.detectors import (
    DINO,
    CascadeRCNN,
    FasterRCNN,
    MaskRCNN,
    RetinaNet,
    SingleStageDetector,
    TwoStageDetector,
)
from mmdet.models.roi_heads import (
    CascadeRoIHead,
    ConvFCBBoxHead,
    FCNMaskHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
    SingleRoIExtractor,
    StandardRoIHead,
)
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from torch import Tensor, nn

from ..errors import UserError
from .detector_parts import DetectorGraph, check_class, kept_scores, refusal, rows, top
from .dino import DinoGraph

_BOX_HEADS = (Shared2FCBBoxHead, Shared4Conv1FCBBoxHead, ConvFCBBoxHead)
# MMDetection's coder takes no other when it predicts.
_LARGEST_LOG_RATIO = abs(math.log(16 / 1000))


def end_to_end(model: nn.Module) -> DetectorGraph:
    """A module from images to boxes, of a detector's own modules.

    It takes normalised images ``(B, 3, H, W)`` of any size, without padding, and returns for each, with
    K = ``max_per_img`` and the best first:

    - boxes ``(B, K, 4)``: x1, y1, x2, y2 in pixels of the image, and within it
    - scores ``(B, K)``: 0 for rows beyond what was found
    - labels ``(B, K)``: int64
    - masks ``(B, K, m, m)``: the object's probability in each cell of its box; of instance segmentors

    They are what the detector's ``predict`` says. ``torch.onnx.export`` takes it with
    :func:`.detector_parts.translations`.

    Raises:
        UserError: for a part that may predict in another way than is known here; the message names it.
    """
    check_class("the detector", model, _GRAPHS)
    return _GRAPHS[type(model)](model).eval()


class _OneStage(DetectorGraph):
    """RetinaNet."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head, self.settings = model.bbox_head, model.bbox_head.test_cfg
        check_class("bbox_head", self.head, (RetinaHead,))
        _check_anchors("bbox_head", self.head)
        _check_settings("test_cfg", self.settings, ("nms_pre", "max_per_img"))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.features(images)
        boxes, scores, labels, _ = _candidates(self.head, maps, self.settings, images.shape[2:])
        scores = scores.where(scores > self.settings.get("score_thr", 0), 0)
        scores, places = _suppress(boxes, scores, labels, self.settings)
        return rows(boxes, places), scores, labels.gather(1, places)


class _TwoStages(DetectorGraph):
    """Faster, Mask and Cascade (Mask) R-CNN."""

    @property
    def output_names(self) -> list[str]:
        return [*super().output_names, *(["masks"] if self.mask_heads else [])]

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.rpn_head, head = model.rpn_head, model.roi_head
        check_class("rpn_head", self.rpn_head, (RPNHead,))
        _check_anchors("rpn_head", self.rpn_head)
        check_class("roi_head", head, (StandardRoIHead, CascadeRoIHead))
        if head.with_shared_head:
            raise UserError(refusal("roi_head has a shared_head"))
        self.rpn_settings, self.settings = model.rpn_head.test_cfg, head.test_cfg
        _check_settings("test_cfg.rpn", self.rpn_settings, ("nms_pre", "max_per_img"))
        _check_settings("test_cfg.rcnn", self.settings, ("max_per_img",))
        self.box_extractors, self.box_heads = _stages(head.bbox_roi_extractor, head.bbox_head)
        for own in self.box_heads:
            _check_box_head(own)
        self.mask_extractors, self.mask_heads = nn.ModuleList(), nn.ModuleList()
        if head.with_mask:
            self.mask_extractors, self.mask_heads = _stages(head.mask_roi_extractor, head.mask_head)
        for own in self.mask_heads:
            check_class("mask_head", own, (FCNMaskHead,))
        for own in (*self.box_extractors, *self.mask_extractors):
            _check_extractor(own)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size, maps = images.shape[2:], self.features(images)
        boxes, scores, _, levels = _candidates(self.rpn_head, maps, self.rpn_settings, size)
        scores, places = _suppress(boxes, scores, levels, self.rpn_settings)
        boxes, scores = self.classify(maps, rows(boxes, places), scores > 0, size)
        count = scores.shape[2]
        boxes = boxes.expand(-1, -1, count, -1).flatten(1, 2)
        scores = scores.where(scores > self.settings.score_thr, 0).flatten(1)
        labels = torch.arange(scores.shape[1], device=scores.device) % count
        labels = labels.expand(scores.shape)
        scores, places = _suppress(boxes, scores, labels, self.settings)
        boxes, labels = rows(boxes, places), labels.gather(1, places)
        if not self.mask_heads:
            return boxes, scores, labels
        return boxes, scores, labels, self.masks(maps, boxes, labels, scores > 0)

    def classify(
        self, maps: Sequence[Tensor], boxes: Tensor, there: Tensor, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Boxes ``(B, P, C, 4)``, or ``(B, P, 1, 4)`` for all classes, and scores ``(B, P, C)``.

        ``boxes (B, P, 4)`` are proposals; those that are not ``there (B, P)`` get the score 0.
        """
        of_stages, last = [], self.box_heads[-1]
        for extractor, head in zip(self.box_extractors, self.box_heads, strict=True):
            features, places = _pool(extractor, maps, boxes, there)
            logits, deltas = (_spread(out, places, there) for out in head(features))
            of_stages.append(logits)
            deltas = deltas.unflatten(2, (-1, 4))
            if head is not last:
                # The next stage's proposals: by the likeliest class, or what is for all of them.
                label = logits[..., :-1].argmax(2) % deltas.shape[2]
                index = label[..., None, None].expand(-1, -1, 1, 4)
                boxes = _decode(head.bbox_coder, boxes, deltas.gather(2, index).squeeze(2), size)
        scores = (sum(of_stages) / len(of_stages)).softmax(2)[..., :-1]
        boxes = _decode(last.bbox_coder, boxes.unsqueeze(2), deltas, size)
        return boxes, scores.where(there.unsqueeze(2), 0)

    def masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor, there: Tensor) -> Tensor:
        """``(B, K, m, m)`` of boxes ``(B, K, 4)``; 0 for those that are not ``there (B, K)``."""
        of_stages = []
        for extractor, head in zip(self.mask_extractors, self.mask_heads, strict=True):
            features, places = _pool(extractor, maps, boxes, there)
            masks = head(features)
            own = labels.flatten()[places] % masks.shape[1]
            index = own[:, None, None, None].expand(-1, 1, *masks.shape[2:])
            of_stages.append(_spread(masks.gather(1, index).squeeze(1).sigmoid(), places, there))
        return (sum(of_stages) / len(of_stages)).where(there[..., None, None], 0)


_GRAPHS = {
    RetinaNet: _OneStage,
    SingleStageDetector: _OneStage,
    FasterRCNN: _TwoStages,
    MaskRCNN: _TwoStages,
    CascadeRCNN: _TwoStages,
    TwoStageDetector: _TwoStages,
    DINO: DinoGraph,
}


def _candidates(
    head: RetinaHead | RPNHead,
    maps: Sequence[Tensor],
    settings: Mapping[str, Any],
    size: Sequence[int],
) -> tuple[Tensor, ...]:
    """The best ``nms_pre`` moved anchors of each level, in an image of ``size``, h and w.

    Returns:
        boxes ``(B, N, 4)``, and ``(B, N)`` scores, labels and levels; a score is 0 where there is none.
    """
    of_levels = []
    outs = [list(out) for out in head(maps)]
    anchors = head.prior_generator.grid_priors(
        [logits.shape[2:] for logits in outs[0]], outs[0][0].dtype, outs[0][0].device
    )
    for level, (logits, deltas, own_anchors) in enumerate(zip(*outs, anchors, strict=True)):
        logits = logits.permute(0, 2, 3, 1).flatten(1)
        best, places = top(logits, settings["nms_pre"], -torch.inf)
        places, labels = places // head.cls_out_channels, places % head.cls_out_channels
        deltas = rows(deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)), places)
        boxes = _decode(head.bbox_coder, own_anchors[places], deltas, size)
        scores = best.sigmoid()
        if settings.get("min_bbox_size", -1) >= 0:
            sides = boxes[..., 2:] - boxes[..., :2]
            scores = scores.where((sides > settings["min_bbox_size"]).all(2), 0)
        of_levels.append((boxes, scores, labels, torch.full_like(labels, level)))
    return tuple(torch.cat(parts, 1) for parts in zip(*of_levels, strict=True))


def _suppress(
    boxes: Tensor, scores: Tensor, groups: Tensor, settings: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Scores and places ``(B, max_per_img)`` of what NMS within the groups leaves, the best first.

    Boxes ``(B, N, 4)``, scores and integer groups ``(B, N)``.
    """
    if not settings["nms"].get("class_agnostic", False):
        # As MMDetection keeps the groups apart: its rounding decides with it.
        far = boxes.amax(2).where(scores > 0, 0).amax(1, keepdim=True) + 1
        boxes = boxes + (groups * far).unsqueeze(2)
    most = settings["max_per_img"]
    return top(kept_scores(boxes, scores, settings["nms"]["iou_threshold"], most), most, 0)


def _decode(
    coder: DeltaXYWHBBoxCoder, boxes: Tensor, deltas: Tensor, size: Sequence[int]
) -> Tensor:
    """Boxes ``(..., 4)`` moved by deltas ``(..., 4)``, within ``size``, h and w, if the coder clips."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    low, high = boxes.split(2, -1)
    centres = (low + high) * 0.5 + (high - low) * deltas[..., :2]
    log_ratios = deltas[..., 2:].clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    halves = (high - low) * log_ratios.exp() * 0.5
    corners = torch.stack([centres - halves, centres + halves], -2)
    if coder.clip_border:
        x, y = corners.unbind(-1)
        corners = torch.stack([x.clamp(0, size[1]), y.clamp(0, size[0])], -1)
    return corners.flatten(-2)


def _pool(
    extractor: SingleRoIExtractor, maps: Sequence[Tensor], boxes: Tensor, there: Tensor
) -> tuple[Tensor, Tensor]:
    """RoIAlign of the boxes ``(B, P, 4)`` that are ``there (B, P)``, each on the level of its size.

    Of the first box in any case: norms take no empty batch.

    Returns:
        ``(R, C, h, w)`` and ``(R,)``, the place of each among the ``B * P`` boxes.
    """
    batch, count = there.shape
    images = torch.arange(batch, dtype=boxes.dtype, device=boxes.device)
    rois = torch.cat([images.view(-1, 1, 1).expand(-1, count, 1), boxes], 2).flatten(0, 1)
    is_pooled = there.flatten() | (torch.arange(batch * count, device=there.device) == 0)
    levels = extractor.map_roi_levels(rois, extractor.num_inputs).where(is_pooled, -1)
    features, places = [], []
    for level, layer in enumerate(extractor.roi_layers):
        places.append((levels == level).nonzero().squeeze(1))
        geometry = (layer.spatial_scale, *layer.output_size, layer.sampling_ratio, layer.aligned)
        features.append(torch.ops.torchvision.roi_align(maps[level], rois[places[-1]], *geometry))
    features = torch.cat(features)
    torch._check(features.shape[0] > 0)
    return features, torch.cat(places)


def _spread(values: Tensor, places: Tensor, there: Tensor) -> Tensor:
    """``(B, P, ...)``: values ``(R, ...)`` at their places among ``B * P``, and zeros."""
    batch, count = there.shape
    out = values.new_zeros(batch * count, *values.shape[1:])
    return out.index_put((places,), values).unflatten(0, (batch, count))


def _stages(extractors: nn.Module, heads: nn.Module) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Extractor and head of each stage, where one of each is a single stage."""
    if isinstance(heads, nn.ModuleList):
        return extractors, heads
    return nn.ModuleList([extractors]), nn.ModuleList([heads])


def _check_anchors(name: str, head: nn.Module) -> None:
    check_class(f"{name}.anchor_generator", head.prior_generator, (AnchorGenerator,))
    _check_coder(f"{name}.bbox_coder", head.bbox_coder)
    if not head.use_sigmoid_cls:
        raise UserError(refusal(f"{name}.loss_cls has use_sigmoid=False"))


def _check_coder(name: str, coder: object) -> None:
    check_class(name, coder, (DeltaXYWHBBoxCoder,))
    if coder.add_ctr_clamp:
        raise UserError(refusal(f"{name} has add_ctr_clamp=True"))


def _check_box_head(head: nn.Module) -> None:
    check_class("bbox_head", head, _BOX_HEADS)
    _check_coder("bbox_head.bbox_coder", head.bbox_coder)
    if head.custom_cls_channels or head.custom_activation:
        raise UserError(refusal(f"bbox_head.loss_cls is a {type(head.loss_cls).__name__}"))


def _check_extractor(extractor: nn.Module) -> None:
    check_class("roi_extractor", extractor, (SingleRoIExtractor,))
    for layer in extractor.roi_layers:
        check_class("roi_layer", layer, (RoIAlign,))
        if layer.pool_mode != "avg":
            raise UserError(refusal(f"roi_layer has pool_mode={layer.pool_mode!r}"))


def _check_settings(name: str, settings: Mapping[str, Any], counts: Iterable[str]) -> None:
    """Refuse another suppression than NMS, and what is to be counted without a limit."""
    nms = dict(settings.get("nms") or {})
    unknown = nms.keys() - {"type", "iou_threshold", "class_agnostic", "split_thr"}
    if nms.get("type", "nms") != "nms" or "iou_threshold" not in nms or unknown:
        raise UserError(refusal(f"{name} has nms={nms or None}"))
    for count in counts:
        if settings.get(count, -1) <= 0:
            raise UserError(f"{name}.{count} must be positive, for as many rows as a file returns")
