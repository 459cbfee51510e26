"""Test-time augmentation: views are merged in the image's own frame."""

import itertools

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from flatten_det.predict.tta import MaskTTAModel, ProbabilityTTAModel, enable_tta

HEIGHT, WIDTH = 20, 30
FLIPPED_AXES = {None: (), "horizontal": (1,), "vertical": (0,), "diagonal": (0, 1)}


def view(box: tuple[int, int, int, int], score: float, direction: str | None) -> DetDataSample:
    """A sample that sees the object at ``box`` of the image, in a mirrored view of it."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    mask = mask.flip(FLIPPED_AXES[direction])
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    meta = {"flip": direction is not None, "flip_direction": direction}
    sample = DetDataSample(metainfo={"ori_shape": (HEIGHT, WIDTH), **meta})
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([seen], dtype=torch.float32),
        scores=torch.tensor([score]),
        labels=torch.tensor([1]),
        masks=mask[None],
    )
    return sample


class Untested(BaseModel):
    """Stands where the detector would; merging does not run it."""

    def forward(self, *args, **kwargs):
        raise NotImplementedError


@pytest.fixture
def tta_model() -> MaskTTAModel:
    cfg = {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 2}
    return MaskTTAModel(module=Untested(), tta_cfg=Config(cfg))


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_boxes_and_masks_return_to_the_image(tta_model, direction):
    box, other = (2, 3, 12, 9), (15, 10, 29, 18)
    views = [view(box, 0.6, None), view(box, 0.9, direction)]
    elsewhere = [view(other, 0.7, None), view(other, 0.5, direction)]
    for each, more in zip(views, elsewhere, strict=True):
        each.pred_instances = InstanceData.cat([each.pred_instances, more.pred_instances])
    (merged,) = tta_model.merge_preds([views])
    found = merged.pred_instances
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])
    for mask, expected in zip(found.masks, (box, other), strict=True):
        assert mask[expected[1] : expected[3], expected[0] : expected[2]].all()
        assert mask.sum() == (expected[2] - expected[0]) * (expected[3] - expected[1])
    assert found.bboxes.tolist() == [list(map(float, box)), list(map(float, other))]


def test_no_more_than_max_per_img(tta_model):
    sample = view((0, 0, 5, 5), 0.9, None)
    for corner in (8, 14, 20):
        more = view((corner, 0, corner + 5, 5), corner / 100, None)
        sample.pred_instances = InstanceData.cat([sample.pred_instances, more.pred_instances])
    (merged,) = tta_model.merge_preds([[sample]])
    assert len(merged.pred_instances) == 2
    assert merged.pred_instances.masks.shape == (2, HEIGHT, WIDTH)


def test_nothing_detected(tta_model):
    sample = view((0, 0, 5, 5), 0.9, None)
    sample.pred_instances = sample.pred_instances[:0]
    (merged,) = tta_model.merge_preds([[sample, sample.clone()]])
    assert len(merged.pred_instances) == 0


def test_mirrored_segmentation_keeps_the_ground_truth(tmp_path):
    """mmseg's metric takes it from the merged sample, so no view may mirror it."""
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint8) % 7
    cv2.imwrite(str(tmp_path / "image.png"), np.dstack([labels * 30] * 3))
    cv2.imwrite(str(tmp_path / "labels.png"), labels)
    pipeline = [
        {"type": kind} for kind in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs")
    ]
    dataset = {"type": "ADE20KDataset", "pipeline": pipeline}
    cfg = Config({"default_scope": "mmseg", "model": {}, "test_dataloader": {"dataset": dataset}})
    cfg.tta_model = {"type": "SegTTAModel"}
    enable_tta(cfg)
    assert cfg.model.type == "ProbabilityTTAModel"
    data = {"img_path": str(tmp_path / "image.png"), "seg_map_path": str(tmp_path / "labels.png")}
    data |= {"seg_fields": [], "reduce_zero_label": False}
    with DefaultScope.overwrite_default_scope("mmseg"):
        for step in cfg.test_dataloader.dataset.pipeline:
            data = TRANSFORMS.build(step)(data)
    plain, mirrored = data["inputs"]
    assert torch.equal(plain.flip(-1), mirrored)
    for sample in data["data_samples"]:
        np.testing.assert_array_equal(sample.gt_sem_seg.data[0], labels)


def test_one_channel_is_a_mean_of_probabilities():
    model = ProbabilityTTAModel(module=Untested())
    model.module.out_channels, model.module.decode_head = 1, Config({"threshold": 0.3})
    probabilities = [torch.tensor([[[0.1, 0.5, 0.1]]]), torch.tensor([[[0.2, 0.3, 0.6]]])]
    views = [SegDataSample(seg_logits=PixelData(data=each)) for each in probabilities]
    (merged,) = model.merge_preds([views])
    assert merged.pred_sem_seg.data.tolist() == [[[0, 1, 1]]]
    assert not merged.pred_sem_seg.data.is_floating_point()


def test_several_channels_are_a_mean_of_probabilities():
    """One view is sure of a class, the other nearly undecided, though its logits are larger."""
    model = ProbabilityTTAModel(module=Untested())
    model.module.out_channels = 3
    logits = [torch.tensor([0.0, 4.0, 0.0]), torch.tensor([9.0, 8.9, -9.0])]
    views = [
        SegDataSample(
            seg_logits=PixelData(data=each[:, None, None]), metainfo={"img_path": "image.jpg"}
        )
        for each in logits
    ]
    (merged,) = model.merge_preds([views])
    assert merged.pred_sem_seg.data.flatten().tolist() == [1]


@pytest.mark.parametrize("own_recipe", [False, True])
def test_all_data_sets_in_wrappers_are_augmented(own_recipe):
    kinds = ("LoadImageFromFile", "LoadAnnotations", "PackDetInputs")
    load, annotate, pack = ({"type": kind} for kind in kinds)
    plain = {"type": "CocoDataset", "pipeline": [load, annotate, pack]}
    mixed = {"type": "CocoDataset", "pipeline": [load]}
    repeated = {"type": "RepeatDataset", "times": 2, "dataset": {**plain, "pipeline": [load, pack]}}
    mix = {"type": "MultiImageMixDataset", "dataset": mixed, "pipeline": [annotate, pack]}
    joined = {"type": "ConcatDataset", "datasets": [plain, repeated, mix]}
    cfg = Config({"model": {}, "test_dataloader": {"dataset": joined}})
    recipe = [load, {"type": "TestTimeAug", "transforms": []}]
    if own_recipe:
        cfg.tta_pipeline = recipe
    enable_tta(cfg)
    first, second, third = cfg.test_dataloader.dataset.datasets
    pipelines = [first.pipeline, second.dataset.pipeline, third.pipeline]
    steps = [[step["type"] for step in pipeline] for pipeline in pipelines]
    views = "TestTimeAug"
    if own_recipe:
        assert steps == [["LoadImageFromFile", views]] * 3
    else:
        assert steps == [["LoadImageFromFile", views]] * 2 + [[views]]
        kinds = [list(itertools.chain(*last[-1].transforms)) for last in pipelines]
        has_annotations = ["LoadAnnotations" in [step["type"] for step in each] for each in kinds]
        assert has_annotations == [True, False, True]
    assert [step["type"] for step in third.dataset.pipeline] == ["LoadImageFromFile"]
