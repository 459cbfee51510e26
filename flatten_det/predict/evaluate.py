"""Test a detector or a segmentor: metrics, dumped predictions, drawn pictures, and its progress."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import mmengine
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.dist import master_only
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement

from ..cli import as_shown
from ..config import blame_config, build_runner, is_segmentor
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
from ..results.picture import write_png
from ..results.prediction import label_type
from ..train.console import ConsoleHook, describe_data, describe_device, describe_model
from ..train.run import log_file
from .drawing import draw_prediction
from .engine import replay_cuda_graphs
from .segmentation import PredictLargeImagesInBands


def evaluate(
    cfg: Config,
    checkpoint: str,
    out: str | None = None,
    show_dir: str | None = None,
    show: bool = False,
    wait_time: float = 2.0,
    cuda_graphs: bool = False,
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
        console: :func:`~flatten_det.train.console.short_console`; None: print the log, as MMEngine does.

    Raises:
        UserError: The checkpoint, the data, ``out`` or ``cuda_graphs`` do not fit the config; or, after
            all others are done, some images cannot be read.
    """
    dump = maps = None
    if out is not None:
        if is_segmentor(cfg):
            if Path(out).is_file():
                raise UserError(f"--out {out} is a file: for segmentation give a folder")
            maps = out
        elif Path(out).suffix in (".pkl", ".pickle"):
            refuse_overwriting(filter(None, (cfg.filename, checkpoint)), [out], "--out")
            dump = KeptResults(out_file_path=out)
        else:
            raise UserError(f"--out {out}: for detection give a file that ends in .pkl")
    saving = SavePredictionsHook(maps, show_dir, show, wait_time)
    with console or nullcontext(()) as shown:
        tested = run_test(cfg, checkpoint, [saving, *shown], [dump] if dump else [], cuda_graphs)
    if tested.runner.rank == 0:
        of_classes = _names_of_classes(tested.runner.test_dataloader.dataset)
        for name, value in tested.metrics.items():
            if name.rpartition("/")[2] not in of_classes:
                print(f"{name:<28}{value:.4f}")
        if dump is not None:
            write_atomically(out, mmengine.dump(dump.kept, file_format="pkl"))
        for title, path in (("predictions", out), ("pictures", show_dir)):
            if path:
                print(f"{title:<28}{path}")
    if tested.unreadable:
        raise tested.unreadable
    return tested.metrics


@dataclass(frozen=True)
class Tested:
    """A test that was run."""

    runner: Runner
    metrics: dict[str, float]
    unreadable: UserError | None  # names the images that were left out, if there are any


def run_test(
    cfg: Config,
    checkpoint: str,
    hooks: Sequence[Hook] = (),
    metrics: Sequence[BaseMetric] = (),
    cuda_graphs: bool = False,
) -> Tested:
    """Test a checkpoint on the config's test data, with hooks and metrics besides ours and the config's.

    Raises:
        UserError: as :func:`evaluate`, but for images that cannot be read, unless none can.
    """
    check_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    with blame_config(cfg) as stage, blame_annotation_files(cfg):
        runner = build_runner(cfg)
        unreadable = LeaveOutUnreadableHook()
        for hook in (
            stage,
            unreadable,
            CheckFilesHook(),
            CheckFitHook(checkpoint),
            PredictLargeImagesInBands(),
            *hooks,
        ):
            runner.register_hook(hook)
        if cuda_graphs:
            replay_cuda_graphs(runner.model)
        runner.test_evaluator.metrics.extend(metrics)
        measured = runner.test()
    error = None
    if unreadable.reasons:
        total = len(runner.test_dataloader.dataset)
        error = left_out(unreadable.reasons, total, ", without which the metrics are")
    return Tested(runner, measured, error)


def _names_of_classes(dataset: Any) -> set[str]:
    """What CocoMetric calls its metrics of single classes, which it tells as a table, too."""
    classes = getattr(dataset, "metainfo", {}).get("classes") or ()
    return {f"{name}_precision" for name in classes}


class KeptResults(DumpDetResults):
    """What mmdet's metric writes, as ``kept``: a full disk then costs no metrics."""

    default_prefix = "kept"  # There are no metrics to have it, and a warning without it.

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
                count = len(runner.test_dataloader.dataset.metainfo["classes"]) + shift
                write_png(maps[sample.img_path], (labels + shift).astype(label_type(count)))


class TestConsoleHook(ConsoleHook):
    """Prints a summary before a test, its progress in images, and the tables that the metrics log.

    For arguments see :class:`~flatten_det.train.console.ConsoleHook`.
    """

    shows_tables = True

    @master_only
    def before_test_epoch(self, runner: Runner) -> None:
        """Print what is tested on what."""
        self._images, self._begin = 0, time.perf_counter()
        self._total = len(runner.test_dataloader.dataset)
        self._introduce(runner, _describe_test(runner, self._config), "test", self._total)

    @master_only
    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence = ()
    ) -> None:
        """Show speed and remaining time, of all ranks together."""
        # The last batches of the ranks may repeat images.
        self._images = min(self._images + runner.world_size * len(outputs), self._total)
        rate = self._images / max(time.perf_counter() - self._begin, 1e-9)
        left = timedelta(seconds=round((self._total - self._images) / rate))
        is_last = batch_idx + 1 == len(runner.test_dataloader)
        numbers = [f"{rate:.3g} images/s", "computing metrics" if is_last else f"eta {left}"]
        self._show(batch_idx + 1, is_last, self._images, self._total, numbers)


def _describe_test(runner: Runner, config: str) -> dict[str, str]:
    metrics = [m for m in runner.test_evaluator.metrics if not isinstance(m, DumpDetResults)]
    return {
        "config": config,
        "model": describe_model(runner),
        "weights": str(runner.cfg.load_from),
        "test": describe_data(runner.test_dataloader, runner.world_size),
        "metrics": ", ".join(type(metric).__name__ for metric in metrics),
        "device": describe_device(runner),
        "log": as_shown(log_file(runner)),
    }
