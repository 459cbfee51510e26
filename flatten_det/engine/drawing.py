"""Draw predictions into the images, with the visualizers of mmdet and mmseg."""

import sys
from collections.abc import Sequence
from pathlib import Path

import mmcv
from mmdet.structures import INSTANCE_OFFSET
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement, PixelData
from mmengine.visualization import Visualizer

from ..data_doctor.findings import printable
from ..visualization.shrinking import shrink
from .atomic_files import DiskFullError, UnwritableError
from .errors import NO_ROOM, UserError
from .naming import result_files


def draw_prediction(
    visualizer: Visualizer,
    sample: BaseDataElement,
    out_file: str | Path | None,
    score_thr: float,
    **options,
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
    try:
        _draw(visualizer, sample, out_file, score_thr, **options)
    except Exception as error:
        is_full = isinstance(error, DiskFullError) or getattr(error, "errno", None) in NO_ROOM
        if is_full or (isinstance(error, UserError) and not isinstance(error, UnwritableError)):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        what = f"warning: no picture of {sample.img_path}: {reason}"
        print(printable(what), file=sys.stderr)


def _draw(
    visualizer: Visualizer,
    sample: BaseDataElement,
    out_file: str | Path | None,
    score_thr: float,
    **options,
) -> None:
    if "pred_instances" in sample:
        options["pred_score_thr"] = score_thr
    if "pred_panoptic_seg" in sample and _is_void(sample, visualizer.dataset_meta["classes"]):
        # mmdet's visualizer fails where there is no segment to draw.
        sample = sample.clone()
        del sample.pred_panoptic_seg
    if "pred_sem_seg" in sample:
        # mmseg's visualizer indexes with it, and a tensor of one pixel is an index, not a mask.
        sample = sample.clone()
        sample.pred_sem_seg = PixelData(data=sample.pred_sem_seg.data.cpu().numpy())
    image, sample = shrink(mmcv.imread(sample.img_path, channel_order="rgb"), sample)
    visualizer.add_datasample(
        Path(sample.img_path).name,
        image,
        data_sample=sample,
        out_file=None if out_file is None else str(out_file),
        **options,
    )


def _is_void(sample: BaseDataElement, classes: Sequence[str]) -> bool:
    labels = sample.pred_panoptic_seg.sem_seg % INSTANCE_OFFSET
    return bool((labels >= len(classes)).all())


class DrawPredictionsHook(Hook):
    """Draws every tested image, predictions beside ground truth where there is one.

    Args:
        out_dir: Folder for the pictures, if any; it gets the data set's subfolders.
        show: Open a window for each picture.
        wait_time: Seconds for which a window stays open; 0 waits for a key.
        score_thr: Detections below it are not drawn.
    """

    def __init__(
        self, out_dir: str | None, show: bool, wait_time: float, score_thr: float = 0.3
    ) -> None:
        self._out_dir = out_dir
        self._options = {"show": show, "wait_time": wait_time}
        self._score_thr = score_thr
        self._files: dict[str, Path] = {}

    def before_test(self, runner: Runner) -> None:
        """Choose the files."""
        if self._out_dir is not None:
            dataset = runner.test_dataloader.dataset
            self._files = result_files(dataset, self._out_dir, ".jpg", "--show-dir")

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch, outputs: Sequence[BaseDataElement]
    ) -> None:
        """Draw one batch."""
        for sample in outputs:
            out_file = self._files.get(sample.img_path)
            draw_prediction(runner.visualizer, sample, out_file, self._score_thr, **self._options)
