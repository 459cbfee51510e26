"""Test a detector or a segmentor: metrics, dumped predictions, drawn pictures."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import mmengine
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..config import blame_config, build_runner, datasets_under_test, is_segmentor
from ..data.loading import (
    CheckFilesHook,
    LeaveOutUnreadableHook,
    blame_annotation_files,
    left_out,
)
from ..errors import UserError
from ..files.atomic import refuse_overwriting, write_atomically
from ..files.checkpoints import CheckFitHook, check_checkpoint
from ..files.images import output_names
from .drawing import draw_prediction
from .predictions import write_label_map
from .predictor import replay_cuda_graphs, without_resizing
from .segmentation import PredictLargeImagesInBands
from .tiles import PredictTilesHook, Tiling


def evaluate(
    cfg: Config,
    checkpoint: str,
    out: str | None = None,
    show_dir: str | None = None,
    show: bool = False,
    wait_time: float = 2.0,
    cuda_graphs: bool = False,
    full_size: bool = False,
    tiling: Tiling | None = None,
    console: AbstractContextManager[Sequence[Hook]] | None = None,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data; print and return the metrics.

    Images that cannot be read are left out, counted among the metrics and, at the end, an error.

    Args:
        cfg: A complete config.
        checkpoint: Weights to test.
        out: Where to put raw predictions. Detection: a ``.pkl`` file (mmdet's
            ``DumpDetResults``); segmentation: a folder of label maps.
        show_dir: Folder for drawn pictures.
        show: Open a window for each picture.
        wait_time: Seconds for which a window stays open; 0 waits for a key.
        cuda_graphs: Replay the backbone from CUDA graphs, see :mod:`flatten_det.backbones.cuda`.
        full_size: Leave images, or tiles, at their own size.
        tiling: How to cut images into tiles, for a detector; None: take them as a whole.
        console: :func:`~flatten_det.train.console.short_console`; None: print the log, as MMEngine does.

    Raises:
        UserError: The checkpoint, the data, ``out``, ``cuda_graphs`` or ``tiling`` do not fit the config;
            or, after all others are done, some images cannot be read.
    """
    check_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    dump = maps = None
    if out is not None:
        if is_segmentor(cfg):
            if Path(out).is_file():
                raise UserError(f"--out {out} is a file: for segmentation give a folder")
            maps = out
        elif Path(out).suffix in (".pkl", ".pickle"):
            refuse_overwriting(filter(None, (cfg.filename, checkpoint)), [out], "--out")
            dump = _KeptResults(out_file_path=out)
        else:
            raise UserError(f"--out {out}: for detection give a file that ends in .pkl")
    with (
        blame_config(cfg) as stage,
        blame_annotation_files(cfg),
        console or nullcontext(()) as hooks,
    ):
        tiled = [] if tiling is None else [PredictTilesHook(cfg.copy(), tiling, full_size)]
        if full_size:
            for dataset in datasets_under_test(cfg):
                dataset.pipeline = without_resizing(dataset.pipeline)
        runner = build_runner(cfg)
        unreadable = LeaveOutUnreadableHook()
        for hook in (
            stage,
            unreadable,
            CheckFilesHook(),
            CheckFitHook(checkpoint),
            PredictLargeImagesInBands(),
            *tiled,
            SavePredictionsHook(maps, show_dir, show, wait_time),
            *hooks,
        ):
            runner.register_hook(hook)
        if cuda_graphs:
            replay_cuda_graphs(runner.model)
        if dump is not None:
            runner.test_evaluator.metrics.append(dump)
        metrics = runner.test()
    if runner.rank == 0:
        of_classes = _names_of_classes(runner.test_dataloader.dataset)
        for name, value in metrics.items():
            if name.rpartition("/")[2] not in of_classes:
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


def _names_of_classes(dataset: Any) -> set[str]:
    """What CocoMetric calls its metrics of single classes, which it tells as a table, too."""
    classes = getattr(dataset, "metainfo", {}).get("classes") or ()
    return {f"{name}_precision" for name in classes}


class _KeptResults(DumpDetResults):
    """What mmdet's metric writes, to be written when the metrics are told: a full disk costs them not."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        self.kept = results
        return {}


class SavePredictionsHook(Hook):
    """Writes label maps and draws pictures of all tested images, predictions beside the ground truth.

    Files have the images' names, and their subfolders if there are several. mmseg's metrics make one
    file of equally named images, and ``CityscapesMetric`` removes the folder with all that is in it.

    Label maps have the values that mmseg's ``IoUMetric`` writes.
    """

    def __init__(
        self, maps: str | None, pictures: str | None, show: bool, wait_time: float
    ) -> None:
        self._folders = {"--show-dir": (pictures, ".jpg"), "--out": (maps, ".png")}
        self._options = {"show": show, "wait_time": wait_time}
        self._files: dict[str, dict[str, Path]] = {}  # by option and image

    def before_test(self, runner: Runner) -> None:
        """Choose the files.

        Raises:
            UserError: One of them is an image or a label map of the data set.
        """
        folders = {key: place for key, place in self._folders.items() if place[0] is not None}
        if not folders:
            return
        dataset = runner.test_dataloader.dataset
        infos = [dataset.get_data_info(index) for index in range(len(dataset))]
        names = output_names(info["img_path"] for info in infos)
        inputs = [info.get(key) for info in infos for key in ("img_path", "seg_map_path")]
        for option, (folder, suffix) in folders.items():
            files = {path: Path(folder, f"{name}{suffix}") for path, name in names.items()}
            refuse_overwriting(filter(None, inputs), files.values(), option)
            self._files[option] = files

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch, outputs: Sequence[BaseDataElement]
    ) -> None:
        pictures, maps = self._files.get("--show-dir", {}), self._files.get("--out")
        for sample in outputs:
            if pictures or self._options["show"]:
                picture = pictures.get(sample.img_path)
                draw_prediction(runner.visualizer, sample, picture, **self._options)
            if maps:
                labels = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
                shift = int(bool(sample.get("reduce_zero_label", False)))
                count = len(runner.test_dataloader.dataset.metainfo["classes"])
                write_label_map(maps[sample.img_path], labels + shift, count + shift)
