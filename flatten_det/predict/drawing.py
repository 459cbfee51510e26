"""Draw predictions and annotations into their images, with the visualizers of mmdet and mmseg."""

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import mmcv
import numpy as np
import torch
from mmdet.models.utils import samplelist_boxtype2tensor
from mmdet.structures import INSTANCE_OFFSET, DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import VISUALIZERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.visualization import Visualizer
from pycocotools import mask as coco_mask

from ..errors import NO_ROOM, UserError, in_one_line, printable
from ..files.atomic import DiskFullError, UnwritableError
from ..results.picture import MAX_PIXELS, MIN_SIDE, enlargement, nearest, reduction
from ..results.prediction import SCORE_THRESHOLD
from ..train.logs import open_logs


def draw_prediction(
    visualizer: Visualizer,
    sample: BaseDataElement,
    out_file: Path | None,
    score_thr: float = SCORE_THRESHOLD,
    **options: Any,
) -> None:
    """Draw a detector's or a segmentor's prediction into its image, which is shrunk if it is large.

    A picture that cannot be drawn or written is left out, with a warning: the prediction counts.

    Args:
        visualizer: ``DetLocalVisualizer`` or ``SegLocalVisualizer``, with its ``dataset_meta``.
        sample: A prediction that knows its ``img_path``; masks may be COCO's RLE.
        out_file: Picture to write, if any.
        score_thr: Detections below it are not drawn.
        **options: Passed to the visualizer's ``add_datasample``.
    """
    if "pred_instances" in sample:
        options["pred_score_thr"] = score_thr
    with picture_may_fail(sample.img_path):
        _draw(visualizer, sample, out_file, options)


def draw_ground_truth(
    visualizer: Visualizer, image: np.ndarray, sample: BaseDataElement, out_file: Path
) -> bool:
    """Draw the annotations of a sample into its image, which is shrunk if it is large, enlarged if small.

    A picture that cannot be drawn or written is left out, with a warning.

    Args:
        visualizer: as for :func:`draw_prediction`.
        image: RGB (H, W, 3) of 8 bits, whose pixels the annotations are in.
        sample: What a data pipeline packs.
        out_file: Picture to write.

    Returns:
        Whether it is written.
    """
    with picture_may_fail(sample.get("img_path", out_file)):
        sample = sample.clone()
        samplelist_boxtype2tensor([sample])
        if "gt_sem_seg" in sample and "masks" in sample.get("gt_instances", ()):
            _leave_things_to_masks(sample)
        image, sample = fitted(image, sample, min_side=MIN_SIDE)
        visualizer.add_datasample(
            out_file.name, image, sample, draw_pred=False, out_file=str(out_file)
        )
        return True
    return False


@contextlib.contextmanager
def picture_may_fail(path: str | Path) -> Iterator[None]:
    """Make a warning of what fails within the block, unless the disk is full; ``path`` is the image."""
    try:
        yield
    except Exception as error:
        is_full = isinstance(error, DiskFullError) or getattr(error, "errno", None) in NO_ROOM
        if is_full or (isinstance(error, UserError) and not isinstance(error, UnwritableError)):
            raise
        warning = f"warning: no picture of {path}: {in_one_line(error)}"
        print(printable(warning), file=sys.stderr)


def _leave_things_to_masks(sample: DetDataSample) -> None:
    """Take objects out of a panoptic sample's label map, which would be drawn over their masks."""
    things = sample.gt_instances.masks.to_ndarray().any(axis=0)
    kept = sample.gt_sem_seg.clone()
    ignored = kept.metainfo.get("ignore_index", 255)
    kept.sem_seg = kept.sem_seg.masked_fill(torch.from_numpy(things), ignored)
    sample.gt_sem_seg = kept


def _draw(
    visualizer: Visualizer, sample: BaseDataElement, out_file: Path | None, options: dict[str, Any]
) -> None:
    if "pred_panoptic_seg" in sample:
        labels = sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET
        if (labels >= len(visualizer.dataset_meta["classes"])).all():
            # mmdet's visualizer fails where there is no segment to draw.
            sample = sample.clone()
            del sample.pred_panoptic_seg
    if "pred_sem_seg" in sample:
        # mmseg's visualizer indexes with it, and a tensor of one pixel is an index, not a mask.
        sample = sample.clone()
        sample.pred_sem_seg = PixelData(data=sample.pred_sem_seg.data.cpu().numpy())
    image, sample = fitted(mmcv.imread(sample.img_path, channel_order="rgb"), sample)
    visualizer.add_datasample(
        options.pop("name", Path(sample.img_path).name),
        image,
        data_sample=sample,
        out_file=out_file and str(out_file),
        **options,
    )


def fitted(
    image: np.ndarray,
    sample: BaseDataElement | None,
    max_pixels: float = MAX_PIXELS,
    min_side: int = 1,
) -> tuple[np.ndarray, BaseDataElement | None]:
    """An image at a size that can be drawn, aspect ratio kept, and a copy of its sample to go with it.

    Args:
        image: (H, W, 3).
        sample: Masks may be tensors, COCO's RLE or mmdet's structures.
        max_pixels: the largest H times W that is left as it is.
        min_side: shorter ones are enlarged, see :class:`EnlargingDetVisualizer`.

    Returns:
        The image, and a sample without RLE, and without ``seg_logits`` if the size is another one.
    """
    height, width = image.shape[:2]
    factor = reduction(height, width, max_pixels)
    if factor == 1:
        factor = enlargement(height, width, min_side)
    size = (max(int(height * factor), 1), max(int(width * factor), 1))
    if factor != 1:
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, size[::-1], interpolation=method)
    return image, None if sample is None else _resized(sample, (height, width), size)


class ValidationPicturesHook(Hook):
    """Draws a few images of each validation, always the same ones, where a log like TensorBoard is written.

    There it does so instead of the frameworks' hooks, which choose others each time, as many as an interval
    of batches yields, under one name (mmdet) at steps that are no iterations.
    """

    pictures = 8

    def __init__(self) -> None:
        self._score_thr = SCORE_THRESHOLD
        self._draws = False

    def before_train(self, runner: Runner) -> None:
        """Take over from the hooks of the config."""
        # They take a second, which pictures of other commands need not wait for.
        from mmdet.engine.hooks import DetVisualizationHook
        from mmseg.engine.hooks import SegVisualizationHook

        logs = open_logs(runner) if is_main_process() else []
        self._draws = bool(logs) and runner.val_loop is not None
        for hook in runner.hooks if self._draws else ():
            if isinstance(hook, DetVisualizationHook | SegVisualizationHook):
                hook.draw = False
                self._score_thr = getattr(hook, "score_thr", self._score_thr)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[BaseDataElement] | None = None,
    ) -> None:
        """Draw those of the batch that are chosen; of several ranks, the first one's."""
        if not self._draws:
            return
        loader = runner.val_dataloader
        size = loader.batch_size or loader.batch_sampler.batch_size
        total = len(loader) * size
        chosen = {index * total // self.pictures for index in range(self.pictures)}
        for index, sample in enumerate(outputs or (), start=batch_idx * size):
            if index in chosen:
                # By number too: every image may be called the same, in folders of their own.
                name = f"val_{index}_{Path(sample.img_path).stem}"
                draw_prediction(
                    runner.visualizer, sample, None, self._score_thr, name=name, step=runner.iter
                )


@VISUALIZERS.register_module()
class EnlargingDetVisualizer(DetLocalVisualizer):
    """``DetLocalVisualizer`` that enlarges small images first, so that labels do not hide objects.

    Args:
        min_size: images whose shorter side is smaller, in pixels, are enlarged by the least whole
            factor that makes it at least this long, while the longer one stays below 4096 pixels.
        name, **kwargs: as for ``DetLocalVisualizer``.
    """

    def __init__(self, name: str = "visualizer", min_size: int = MIN_SIDE, **kwargs) -> None:
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
        image, data_sample = fitted(image, data_sample, math.inf, self.min_size)
        super().add_datasample(name, image, data_sample, *args, **kwargs)


def _resized(
    sample: BaseDataElement, shape: tuple[int, int], size: tuple[int, int]
) -> BaseDataElement:
    """A copy of a sample whose boxes, masks and maps go with an image of ``size`` instead of ``shape``."""
    resized = sample.clone()
    for name, value in sample.items():
        if isinstance(value, InstanceData):
            setattr(resized, name, _resized_instances(value, shape, size))
        elif isinstance(value, PixelData) and size != shape:
            if name == "seg_logits":
                del resized.seg_logits
                continue
            smaller = PixelData(metainfo=value.metainfo)
            for key, maps in value.items():
                pixels = np.stack([nearest(each, size) for each in _numpy(maps)])
                setattr(smaller, key, torch.from_numpy(pixels))
            setattr(resized, name, smaller)
    return resized


def _resized_instances(
    found: InstanceData, shape: tuple[int, int], size: tuple[int, int]
) -> InstanceData:
    found = found.clone()
    if size != shape and "bboxes" in found:
        y_factor, x_factor = size[0] / shape[0], size[1] / shape[1]
        found.bboxes = found.bboxes * found.bboxes.new_tensor([x_factor, y_factor] * 2)
    if "masks" in found and (size != shape or isinstance(found.masks, list)):
        masks = found.masks
        if isinstance(masks, BitmapMasks | PolygonMasks):
            masks = masks.to_ndarray()
        # One after the other: all at full size would be a gigabyte for each 30 at 8192 x 4096.
        found.masks = torch.zeros((len(masks), *size), dtype=torch.bool)
        for index, mask in enumerate(masks):
            whole = coco_mask.decode(mask) if isinstance(mask, dict) else _numpy(mask)
            found.masks[index] = torch.from_numpy(nearest(whole, size)).bool()
    return found


def _numpy(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values
