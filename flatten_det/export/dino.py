"""DINO from the image to its boxes: deformable attention as bilinear samples, which ONNX has."""

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import DINOHead
from mmdet.models.layers import SinePositionalEncoding, inverse_sigmoid
from mmdet.models.layers.transformer import (
    DeformableDetrTransformerEncoder,
    DinoTransformerDecoder,
)
from torch import Tensor, nn

from ..errors import UserError
from .detector_parts import DetectorGraph, check_class, refusal, rows, top


class DinoGraph(DetectorGraph):
    """DINO, whose queries are as many for each image: nothing is suppressed."""

    def __init__(self, model: nn.Module) -> None:
        # Its attention layers are replaced.
        model = deepcopy(model)
        super().__init__(model)
        if self.divisor != 1:
            raise UserError(refusal(f"data_preprocessor has pad_size_divisor={self.divisor}"))
        head = model.bbox_head
        check_class("bbox_head", head, (DINOHead,))
        check_class("encoder", model.encoder, (DeformableDetrTransformerEncoder,))
        check_class("decoder", model.decoder, (DinoTransformerDecoder,))
        check_class("positional_encoding", model.positional_encoding, (SinePositionalEncoding,))
        if not head.loss_cls.use_sigmoid:
            raise UserError(refusal("bbox_head.loss_cls has use_sigmoid=False"))
        self.most = head.test_cfg.get("max_per_img", model.num_queries)
        for module in list(model.modules()):
            for name, part in module.named_children():
                if isinstance(part, MultiScaleDeformableAttention):
                    setattr(module, name, _DeformableAttention(part))
        self.detector = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        detector, head, maps = self.detector, self.detector.bbox_head, self.features(images)
        sizes = [tuple(own.shape[2:]) for own in maps]
        places = dict(
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=images.new_ones(images.shape[0], len(maps), 2),
            key_padding_mask=None,
        )
        positions = [
            _sines(detector.positional_encoding, images, *size) + level
            for size, level in zip(sizes, detector.level_embed, strict=True)
        ]
        tokens, positions = _as_tokens(maps), torch.cat(positions).unsqueeze(0)
        centres = torch.cat([_centres(images, *size) for size in sizes])
        for layer in detector.encoder.layers:
            points = centres[:, None].expand(images.shape[0], -1, len(maps), -1)
            tokens = layer(query=tokens, query_pos=positions, reference_points=points, **places)
        states, references = detector.decoder(
            query=detector.query_embedding.weight.expand(images.shape[0], -1, -1),
            value=tokens,
            self_attn_mask=None,
            reference_points=self.proposals(tokens, centres, sizes),
            reg_branches=head.reg_branches,
            **places,
        )
        # Of the last layer; a reference is that of the layer before.
        last = len(detector.decoder.layers) - 1
        logits = head.cls_branches[last](states[last])
        deltas = head.reg_branches[last](states[last])
        boxes = (deltas + inverse_sigmoid(references[last])).sigmoid()
        best, index = top(logits.flatten(1), self.most, -torch.inf)
        boxes = rows(boxes, index // head.num_classes)
        return _in_pixels(boxes, images.shape[2:]), best.sigmoid(), index % head.num_classes

    def proposals(
        self, tokens: Tensor, centres: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """The boxes ``(B, Q, 4)`` of the likeliest tokens ``(B, N, C)``, centre and size."""
        detector, head = self.detector, self.detector.bbox_head
        sides = [centres.new_full((h * w, 2), 0.05 * 2**i) for i, (h, w) in enumerate(sizes)]
        anchors = torch.cat([centres, torch.cat(sides)], 1)
        is_inside = ((anchors > 0.01) & (anchors < 0.99)).all(1, keepdim=True)
        anchors = (anchors / (1 - anchors)).log().where(is_inside, torch.inf)
        tokens = detector.memory_trans_norm(detector.memory_trans_fc(tokens.where(is_inside, 0)))
        # The head's last branches are for them.
        logits, boxes = head.cls_branches[-1](tokens), head.reg_branches[-1](tokens) + anchors
        return rows(boxes, logits.amax(2).topk(detector.num_queries)[1]).sigmoid()


def _centres(like: Tensor, height: int, width: int) -> Tensor:
    """``(height * width, 2)``: x and y of a map's tokens, in shares of the map."""
    x, y = (
        (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) / size
        for size in (width, height)
    )
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], 2).flatten(0, 1)


def _sines(encoding: SinePositionalEncoding, like: Tensor, height: int, width: int) -> Tensor:
    """The encoding ``(height * width, C)`` of a map without padding.

    Its own function divides by the last row of all, which is one for numbers but not for torch's symbols.
    """
    number = torch.arange(encoding.num_feats, dtype=like.dtype, device=like.device)
    periods = encoding.temperature ** (2 * (number // 2) / encoding.num_feats)
    of_axes = []
    for size in (height, width):
        ticks = torch.arange(1, size + 1, dtype=like.dtype, device=like.device)
        if encoding.normalize:
            ticks = (ticks + encoding.offset) / (size + encoding.eps) * encoding.scale
        angles = ticks[:, None] / periods
        of_axes.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1))
    y, x = of_axes
    shape = (height, width, -1)
    return torch.cat([y[:, None].expand(shape), x.expand(shape)], 2).flatten(0, 1)


def _as_tokens(maps: Sequence[Tensor]) -> Tensor:
    """Maps ``(B, C, H, W)`` -> all their tokens ``(B, N, C)``."""
    return torch.cat([own.flatten(2) for own in maps], 2).transpose(1, 2)


def _in_pixels(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Centre and size in shares of the image -> x1, y1, x2, y2 in pixels, within ``size``, h and w."""
    centres, sides = boxes.split(2, -1)
    x, y = torch.stack([centres - 0.5 * sides, centres + 0.5 * sides], -2).unbind(-1)
    height, width = size
    corners = [(x * width).clamp(0, width), (y * height).clamp(0, height)]
    return torch.stack(corners, -1).flatten(-2)


class _DeformableAttention(nn.Module):
    """The same as mmcv's layer, for sizes of maps that are a list of numbers or symbols.

    mmcv's own takes them from a tensor, so that the shapes of what it computes depend on values.
    """

    def __init__(self, layer: MultiScaleDeformableAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        identity: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Tokens ``(B, Q, C)`` of queries and ``(B, N, C)`` of the maps -> ``(B, Q, C)``.

        Reference points are ``(B, Q, L, 2)``, or boxes ``(B, Q, L, 4)`` of centre and size.
        """
        layer = self.layer
        identity = query if identity is None else identity
        query = query + query_pos
        value = layer.value_proj(query if value is None else value)
        kind = (layer.num_heads, layer.num_levels, layer.num_points)
        offsets = layer.sampling_offsets(query).unflatten(2, (*kind, 2))
        weights = layer.attention_weights(query).unflatten(2, (kind[0], -1)).softmax(3)
        points = reference_points[:, :, None, :, None]
        if points.shape[-1] == 4:
            places = points[..., :2] + offsets / layer.num_points * points[..., 2:] * 0.5
            places = places.unbind(3)
        else:
            # Not by a tensor of h and w, which would keep those of the export's example.
            x, y = offsets.unbind(-1)
            places = [
                points[..., level, :, :]
                + torch.stack([x[:, :, :, level] / w, y[:, :, :, level] / h], -1)
                for level, (h, w) in enumerate(spatial_shapes)
            ]
        sampled = []
        parts = value.unflatten(2, (kind[0], -1)).split([h * w for h, w in spatial_shapes], 1)
        for part, own, size in zip(parts, places, spatial_shapes, strict=True):
            image = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, size)
            grid = (2 * own - 1).transpose(1, 2).flatten(0, 1)
            sampled.append(F.grid_sample(image, grid, align_corners=False))
        # (B * M, D, Q, L * P), and the weights (B * M, 1, Q, L * P).
        weights = weights.transpose(1, 2).flatten(0, 1).unsqueeze(1)
        out = (torch.cat(sampled, 3) * weights).sum(3)
        out = out.unflatten(0, (-1, kind[0])).flatten(1, 2).transpose(1, 2)
        return layer.output_proj(out) + identity
