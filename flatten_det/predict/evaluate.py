"""Test a detector or a segmentor: metrics, dumped predictions, drawn pictures."""

from collections.abc import Sequence
from pathlib import Path

import mmengine
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..config import build_runner, is_segmentor, named_building_errors
from ..data.loading import (
    CheckMetricsHook,
    LeaveOutUnreadableHook,
    left_out,
    named_annotation_errors,
)
from ..errors import UserError
from ..files.atomic import refuse_overwriting, write_atomically
from ..files.model_checkpoint import CheckFitHook, check_checkpoint
from ..files.naming import result_files
from .drawing import DrawPredictionsHook
from .predictions import write_label_map
from .predictor import replay_cuda_graphs
from .segmentation import PredictLargeImagesInBands


def evaluate(
    cfg: Config,
    checkpoint: str,
    out: str | None = None,
    show_dir: str | None = None,
    show: bool = False,
    wait_time: float = 2.0,
    cuda_graphs: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data, and print the metrics.

    Images that cannot be read are left out, counted among the metrics and, at the end, an error.

    Args:
        cfg: A complete config, see :mod:`flatten_det.config`.
        checkpoint: Weights to test.
        out: Where to put raw predictions. Detection: a ``.pkl`` file (mmdet's
            ``DumpDetResults``); segmentation: a folder of label maps.
        show_dir: Folder for drawn pictures.
        show: Open a window for each picture.
        wait_time: Seconds for which a window stays open.
        cuda_graphs: Replay the backbone from CUDA graphs, see :mod:`flatten_det.backbones.cuda`.

    Returns:
        The metrics by name.

    Raises:
        UserError: The checkpoint, the data, ``out`` or ``cuda_graphs`` do not fit the config; or, after
            all others are done, some images cannot be read.
    """
    check_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    dump = hook = None
    if out is not None:
        if is_segmentor(cfg):
            if Path(out).is_file():
                raise UserError(f"--out {out} is a file: for segmentation give a folder")
            hook = SaveLabelMapsHook(out)
        elif Path(out).suffix in (".pkl", ".pickle"):
            refuse_overwriting(filter(None, (cfg.filename, checkpoint)), [out], "--out")
            dump = _KeptResults(out_file_path=out)
        else:
            raise UserError(f"--out {out}: for detection give a file that ends in .pkl")
    with named_building_errors(cfg) as stage, named_annotation_errors(cfg):
        runner = build_runner(cfg)
        runner.register_hook(stage)
        unreadable = LeaveOutUnreadableHook()
        runner.register_hook(unreadable)
        if cuda_graphs:
            replay_cuda_graphs(runner.model)
        runner.register_hook(CheckMetricsHook())
        runner.register_hook(CheckFitHook(checkpoint))
        runner.register_hook(PredictLargeImagesInBands())
        if show or show_dir:
            runner.register_hook(DrawPredictionsHook(show_dir, show, wait_time))
        if hook is not None:
            runner.register_hook(hook)
        if dump is not None:
            runner.test_evaluator.metrics.append(dump)
        metrics = runner.test()
    if runner.rank == 0:
        for name, value in metrics.items():
            print(f"{name:<28}{value:.4f}")
        if dump is not None:
            write_atomically(out, mmengine.dump(dump.kept, file_format="pkl"))
        for title, path in (("predictions", out), ("pictures", show_dir)):
            if path:
                print(f"{title:<28}{path}")
    if unreadable.reasons:
        total = len(runner.test_dataloader.dataset)
        raise left_out(unreadable.reasons, total, ", without which the metrics are")
    return metrics


class _KeptResults(DumpDetResults):
    """What mmdet's metric writes, to be written when the metrics are told: a full disk costs them not."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.kept = results
        return {}


class SaveLabelMapsHook(Hook):
    """Writes the label map of every tested image, with the values that mmseg's ``IoUMetric`` writes.

    Files have the images' names, and their subfolders if there are several. mmseg's metrics make one
    file of equally named images, and ``CityscapesMetric`` removes the folder with all that is in it.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def before_test(self, runner: Runner) -> None:
        """Choose the files."""
        dataset = runner.test_dataloader.dataset
        self._files = result_files(dataset, self._folder, ".png", "--out")
        self._classes = len(dataset.metainfo["classes"])

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch, outputs: Sequence[BaseDataElement]
    ) -> None:
        """Write those of one batch."""
        for sample in outputs:
            labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
            shift = int(bool(sample.get("reduce_zero_label", False)))
            path = self._files[sample.img_path]
            write_label_map(path, labels + shift, self._classes + shift)
