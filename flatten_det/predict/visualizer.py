"""Detections on small images, large enough to be read."""

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData

# A strip of three pixels would become as long as no canvas is.
MAX_ENLARGED_SIDE = 4096


@VISUALIZERS.register_module()
class EnlargingDetVisualizer(DetLocalVisualizer):
    """``DetLocalVisualizer`` that enlarges small images first, so that labels do not hide objects.

    Args:
        name: of the instance, as for every visualizer of mmengine.
        min_size: images whose shorter side is smaller, in pixels, are enlarged by the least whole
            factor that makes it at least this long, while the longer one stays below 4096 pixels.
        **kwargs: as for ``DetLocalVisualizer``.
    """

    def __init__(self, name: str = "visualizer", min_size: int = 384, **kwargs) -> None:
        super().__init__(name, **kwargs)
        self.min_size = min_size

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: DetDataSample | None = None,
        *args,
        **kwargs,
    ) -> None:
        """Draw a sample, see ``DetLocalVisualizer.add_datasample``; ``image`` is ``(H, W, 3)``."""
        shorter, longer = sorted(image.shape[:2])
        factor = min(-(-self.min_size // shorter), MAX_ENLARGED_SIDE // longer)
        if factor > 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            data_sample = data_sample and _enlarged(data_sample, factor)
        super().add_datasample(name, image, data_sample, *args, **kwargs)


def _enlarged(sample: DetDataSample, factor: int) -> DetDataSample:
    sample = sample.clone()
    for field in ("gt_instances", "pred_instances"):
        if field in sample:
            setattr(sample, field, _enlarged_instances(sample.get(field), factor))
    return sample


def _enlarged_instances(instances: InstanceData, factor: int) -> InstanceData:
    instances = instances.clone()
    if "bboxes" in instances:
        instances.bboxes = instances.bboxes * factor
    if "masks" in instances:
        masks = instances.masks
        if not isinstance(masks, torch.Tensor):
            masks = masks.to_tensor(torch.bool, "cpu")
        instances.masks = masks.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return instances
