"""Test-time augmentation, for configs with and without a recipe of their own."""

from copy import deepcopy

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData
from mmseg.models import SegTTAModel
from mmseg.structures import SegDataSample

from ..config import datasets_under_test, is_segmentor, loads_annotations, type_name

FLIPS = [
    {"type": "RandomFlip", "prob": 0.0},
    {"type": "RandomFlip", "prob": 1.0, "direction": "horizontal"},
]
# Of masks (n, H, W), by direction.
FLIPPED_AXES = {None: (), "horizontal": (-1,), "vertical": (-2,), "diagonal": (-2, -1)}
DET_META_KEYS = (
    "img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "flip_direction",
)  # fmt: skip


def enable_tta(cfg: Config) -> None:
    """Test with augmented views: the config's ``tta_model`` and ``tta_pipeline``.

    What the config lacks is filled in: the test pipeline on the image and its mirror image; for
    detection merged by an NMS at IoU 0.5 (mmdet's own default), for segmentation by the mean of
    the class probabilities.
    """
    segmentation = is_segmentor(cfg)
    if cfg.get("tta_model") is None:
        nms = {"type": "nms", "iou_threshold": 0.5}
        cfg.tta_model = {"type": "MaskTTAModel", "tta_cfg": {"nms": nms, "max_per_img": 100}}
        if segmentation:
            cfg.tta_model = {"type": "ProbabilityTTAModel"}
    elif type_name(cfg.tta_model) == "SegTTAModel":
        cfg.tta_model.type = "ProbabilityTTAModel"
    for dataset in datasets_under_test(cfg):
        dataset.pipeline = cfg.get("tta_pipeline") or _mirrored(dataset.pipeline, segmentation)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _mirrored(pipeline: list[dict], segmentation: bool) -> list[dict]:
    """The pipeline on an image and its mirror image; the ground truth stays as it is."""
    pipeline = deepcopy(pipeline)
    *transforms, pack = pipeline
    if not segmentation:
        pack.setdefault("meta_keys", DET_META_KEYS)
        pack["meta_keys"] = tuple(dict.fromkeys((*pack["meta_keys"], "flip", "flip_direction")))
    # mmdet's metrics take the ground truth from the annotation file, mmseg's from the sample.
    loaders = [step for step in transforms if loads_annotations(step)]
    others = [step for step in transforms if not loads_annotations(step)]
    branches = [deepcopy(FLIPS), *([loader] for loader in loaders), [pack]]
    return [*others, {"type": "TestTimeAug", "transforms": branches}]


@MODELS.register_module()
class MaskTTAModel(DetTTAModel):
    """mmdet's merging of augmented detections, which refuses masks, with masks.

    Boxes of all views pass one NMS; each box that is kept keeps its own mask.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if "masks" not in views[0]:
            return super()._merge_single_sample(data_samples)
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views],
            [view.scores for view in views],
            [sample.metainfo for sample in data_samples],
        )
        if len(boxes) == 0:
            return data_samples[0]
        labels = torch.cat([view.labels for view in views])
        masks = torch.cat(
            [
                view.masks.flip(FLIPPED_AXES[sample.flip_direction if sample.flip else None])
                for view, sample in zip(views, data_samples, strict=True)
            ]
        )
        detections, kept = batched_nms(boxes, scores, labels, self.tta_cfg.nms)
        found = InstanceData(
            bboxes=detections[:, :4],
            scores=detections[:, 4],
            labels=labels[kept],
            masks=masks[kept],
        )
        merged = data_samples[0]
        merged.pred_instances = found[: self.tta_cfg.max_per_img]
        return merged


@MODELS.register_module()
class ProbabilityTTAModel(SegTTAModel):
    """mmseg's merging of augmented label maps, also for a model of one channel.

    mmseg takes the sigmoid of what is one already: all pixels come out as foreground.
    """

    def merge_preds(self, data_samples_list: list[list[SegDataSample]]) -> list[SegDataSample]:
        if self.module.out_channels > 1:
            return super().merge_preds(data_samples_list)
        threshold = self.module.decode_head.threshold
        for first, *others in data_samples_list:
            views = [sample.seg_logits.data for sample in (first, *others)]
            labels = torch.stack(views).mean(0) > threshold
            first.set_data({"pred_sem_seg": PixelData(data=labels.long())})
        return [samples[0] for samples in data_samples_list]
