"""Numerics of whole detectors and segmentors with backbones of all families."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from numerics import PRECISIONS, check_numerics, with_weights
from torch import Tensor, nn

import flatten_det  # noqa: F401  registers the backbones
from flatten_det.train.optimizer import keep_convolutions_in_float32

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart"
ARCHS = {
    "FLattenPVT": dict(embed_dims=(32, 64, 128, 256), num_heads=(1, 2, 4, 8), depths=(1, 1, 1, 1)),
    "FLattenSwin": dict(embed_dims=32, num_heads=(1, 2, 4, 8), depths=(1, 2, 1, 1)),
}
SIZE = (32, 32)


def make(config: str, family: str, attn_types: str) -> nn.Module:
    cfg = Config.fromfile(QUICKSTART / config)
    backbone = dict(type=family, arch=ARCHS[family], attn_types=tuple(attn_types))
    cfg.model.backbone = backbone
    torch.manual_seed(0)
    model = with_weights(MODELS.build(cfg.model)).train()
    keep_convolutions_in_float32(model)  # As in training.
    return model


def images(size: tuple[int, int], factor: float = 1.0) -> Tensor:
    return factor * torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def detection_samples(size: tuple[int, int]) -> list[DetDataSample]:
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size)
    )
    boxes = torch.tensor([[4.0, 4.0, 36.0, 36.0], [30.0, 8.0, 60.0, 40.0]])
    masks = torch.zeros(2, *size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    sample.gt_instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([0, 1]), masks=BitmapMasks(masks.numpy(), *size)
    )
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0).long())
    return [sample, sample.clone()]


def segment(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The logits and the loss."""
    size = tuple(image.shape[2:])
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    labels = torch.arange(size[0] * size[1]).view(1, *size) // 7 % 7
    sample.gt_sem_seg = PixelData(data=labels)
    with DefaultScope.overwrite_default_scope("mmseg"):
        losses = model.loss(image, [sample, sample])
        return [model.decode_head(model.extract_feat(image)), losses["decode.loss_ce"]]


def detect(model: nn.Module, image: Tensor) -> list[Tensor]:
    """What the head says on every level, and the losses."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        scores, boxes = model.bbox_head(model.extract_feat(image))
        losses = model.loss(image, detection_samples(tuple(image.shape[2:])))
    return [*scores, *boxes, sum(losses["loss_cls"]), sum(losses["loss_bbox"])]


MODELS_OF_SCOPE = {
    "mmseg": ("flatten-pvt-nano_semantic-fpn_shapes.py", segment),
    "mmdet": ("retinanet_flatten-pvt-nano_fpn_shapes.py", detect),
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    ("family", "attn_types", "factor"), [("FLattenPVT", "LLLL", 1e3), ("FLattenSwin", "SSSS", 1e-4)]
)
@pytest.mark.parametrize("scope", MODELS_OF_SCOPE)
def test_models(scope, family, attn_types, factor, precision):
    """Of two families: necks and heads are others', and all backbones have sheets of their own."""
    config, compute = MODELS_OF_SCOPE[scope]
    with DefaultScope.overwrite_default_scope(scope):
        model = make(config, family, attn_types)
    check_numerics(model, images(SIZE, factor), precision, compute)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_constant_image_in_a_segmentor(precision):
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = make("flatten-pvt-nano_semantic-fpn_shapes.py", "FLattenPVT", "LLLL")
    image = images(SIZE)
    check_numerics(model, image[..., :1, :1].expand_as(image).contiguous(), precision, segment)
