"""Test a detector or a segmentor: metrics, dumped predictions, drawn pictures."""

from pathlib import Path

from mmdet.evaluation import DumpDetResults
from mmengine.config import Config

from ..large_images.segmentation import PredictLargeImagesInBands
from .annotations import named_annotation_errors
from .checkpoint import CheckFitHook, check_checkpoint
from .cli import replay_cuda_graphs
from .config import build_runner
from .drawing import DrawPredictionsHook
from .errors import UserError
from .images import CheckImagesHook, CheckMetricsHook


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

    Args:
        cfg: A complete config, see :mod:`flatten_det.engine.config`.
        checkpoint: Weights to test.
        out: Where to put raw predictions. Detection: a ``.pkl`` file (mmdet's
            ``DumpDetResults``); segmentation: a folder of label maps (mmseg's ``output_dir``).
        show_dir: Folder for drawn pictures.
        show: Open a window for each picture.
        wait_time: Seconds for which a window stays open.
        cuda_graphs: Replay the backbone from CUDA graphs, see :mod:`flatten_det.backbones.cuda_graphs`.

    Returns:
        The metrics by name.

    Raises:
        UserError: The checkpoint, the data, ``out`` or ``cuda_graphs`` do not fit the config.
    """
    check_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    dumps = []
    if out is not None:
        if cfg.get("default_scope") == "mmseg":
            _dump_label_maps(cfg, out)
        elif Path(out).suffix in (".pkl", ".pickle"):
            dumps.append(DumpDetResults(out_file_path=out))
        else:
            raise UserError(f"--out {out}: for detection give a file that ends in .pkl")
    with named_annotation_errors(cfg):
        runner = build_runner(cfg)
        if cuda_graphs:
            replay_cuda_graphs(runner.model)
        runner.register_hook(CheckImagesHook())
        runner.register_hook(CheckMetricsHook())
        runner.register_hook(CheckFitHook(checkpoint))
        runner.register_hook(PredictLargeImagesInBands())
        if show or show_dir:
            runner.register_hook(DrawPredictionsHook(show_dir, show, wait_time))
        runner.test_evaluator.metrics.extend(dumps)
        metrics = runner.test()
    if runner.rank == 0:
        for name, value in metrics.items():
            print(f"{name:<28}{value:.4f}")
        for title, path in (("predictions", out), ("pictures", show_dir)):
            if path:
                print(f"{title:<28}{path}")
    return metrics


def _dump_label_maps(cfg: Config, folder: str) -> None:
    if Path(folder).is_file():
        raise UserError(f"--out {folder} is a file: for segmentation give a folder")
    evaluators = cfg.test_evaluator
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        metric.output_dir = folder
