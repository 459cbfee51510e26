"""Detectors and segmentors tell the backbone which part of a batch is padding."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

import flatten_det  # noqa: F401  registers the backbones

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart"
SIZES = [(96, 128), (64, 64), (80, 128)]


def detection_sample(height: int, width: int) -> DetDataSample:
    sample = DetDataSample(
        metainfo=dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1, 1))
    )
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0]))
    sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0).long())
    return sample


def segmentation_sample(height: int, width: int) -> SegDataSample:
    sample = SegDataSample(metainfo=dict(img_shape=(height, width), ori_shape=(height, width)))
    sample.gt_sem_seg = PixelData(data=torch.ones(1, height, width).long())
    return sample


CASES = {
    "mmdet": ("retinanet_flatten-pvt-nano_fpn_shapes.py", detection_sample),
    "mmseg": ("flatten-pvt-nano_semantic-fpn_shapes.py", segmentation_sample),
}


@pytest.mark.parametrize("scope", CASES)
@pytest.mark.parametrize("mode", ["loss", "predict", "tensor"])
def test_the_backbone_is_given_what_is_valid(scope, mode, monkeypatch):
    config, make_sample = CASES[scope]
    cfg = Config.fromfile(QUICKSTART / config)
    if scope == "mmseg":
        whole = dict(size=(96, 128), size_divisor=None)
        cfg.model.data_preprocessor.update(whole, test_cfg=whole)
    # MMSegmentation predicts for images of one size only, which it may pad.
    sizes = SIZES[1:2] * 2 if scope == "mmseg" and mode != "loss" else SIZES
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model).train(mode == "loss")
        batch = dict(
            inputs=[torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in sizes],
            data_samples=[make_sample(*size) for size in sizes],
        )
        seen = []
        inner = model.backbone.forward_images

        def record(images):
            seen.append(tuple(images.shape))
            return inner(images)

        monkeypatch.setattr(model.backbone, "forward_images", record)
        data = model.data_preprocessor(batch, training=mode == "loss")
        assert data["inputs"].shape == (len(sizes), 3, 96, 128)
        with torch.set_grad_enabled(mode == "loss"):
            model(**data, mode=mode)
    expected = [(1, 3, *size) for size in sizes] if sizes == SIZES else [(2, 3, *sizes[0])]
    assert seen == expected
