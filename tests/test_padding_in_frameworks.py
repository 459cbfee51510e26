"""Detectors and segmentors tell the backbone which part of a batch is padding."""

from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
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
    if (scope, mode) == ("mmdet", "predict"):
        # The first and the last are of one size up to the divisor, and are predicted together.
        expected = [expected[0], expected[2], expected[1]]
    assert seen == expected


@pytest.fixture
def detector():
    cfg = Config.fromfile(QUICKSTART / CASES["mmdet"][0])
    # With random weights nothing is sure of anything.
    cfg.model.test_cfg.update(score_thr=0.0, max_per_img=20)
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        yield model.eval()


def detection_batch(sizes, **info) -> dict:
    torch.manual_seed(1)
    batch = dict(
        inputs=[torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in sizes],
        data_samples=[detection_sample(*size) for size in sizes],
    )
    for sample in batch["data_samples"]:
        sample.set_metainfo(info)
    return batch


def assert_equal_boxes(samples, others):
    for a, b in zip(samples, others, strict=True):
        assert len(a.pred_instances)
        for name in ("bboxes", "scores", "labels"):
            found, expected = a.pred_instances[name], b.pred_instances[name]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def alone(batch: dict, index: int) -> dict:
    return {name: values[index : index + 1] for name, values in batch.items()}


@torch.no_grad()
def test_test_time_augmentation(detector):
    views = []
    for flip in (False, True):
        view = detection_batch(SIZES, flip=flip, flip_direction="horizontal" if flip else None)
        view["inputs"] = [x.flip(2) if flip else x for x in view["inputs"]]
        views.append(view)
    tta = MODELS.build(
        dict(
            type="DetTTAModel",
            module=detector,
            tta_cfg=ConfigDict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
        )
    )

    def merged(views) -> list:
        # One list per view, in which each entry holds the images: what TestTimeAug collates to.
        data = {name: [view[name] for view in views] for name in views[0]}
        return tta.test_step(data)

    found = merged(views)
    assert len(found) == len(SIZES)
    for index, sample in enumerate(found):
        assert_equal_boxes([sample], merged([alone(view, index) for view in views]))


@torch.no_grad()
def test_as_part_of_a_distributed_model(detector, lone_process):
    model = MMDistributedDataParallel(detector)
    batch = detection_batch(SIZES)
    found = model.test_step(batch)
    for index, sample in enumerate(found):
        assert_equal_boxes([sample], model.test_step(alone(batch, index)))
    seen = []
    inner = detector.backbone.forward_images
    detector.backbone.forward_images = lambda x: seen.append(tuple(x.shape[2:])) or inner(x)
    model.train()
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-3))
    with torch.enable_grad():
        model.train_step(batch, optimizer)
    assert seen == SIZES


def test_images_that_the_preprocessor_resizes(detector):
    """What a batch augmentation makes of the sizes is what the backbone is given."""
    resize = MODELS.build(dict(type="BatchSyncRandomResize", random_size_range=(64, 64)))
    resize._input_size = (48, 64)
    detector.data_preprocessor.batch_augments = torch.nn.ModuleList([resize])
    seen = []
    inner = detector.backbone.forward_images
    detector.backbone.forward_images = lambda x: seen.append(tuple(x.shape[2:])) or inner(x)
    MessageHub.get_current_instance().update_info("iter", 0)
    detector.train()
    detector(**detector.data_preprocessor(detection_batch(SIZES), training=True), mode="loss")
    assert seen == [(height // 2, width // 2) for height, width in SIZES]
