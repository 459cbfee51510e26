"""Train a detector or a segmentor from a config."""

from pathlib import Path

from mmengine.config import Config

from ..data_doctor.before_training import check_before_training
from . import amp  # noqa: F401  registers CPUAmpOptimWrapper
from .annotations import named_annotation_errors
from .config import build_runner
from .images import CheckImagesHook
from .interrupt import InterruptHook
from .resume import ResumePositionHook
from .summary import training_summary


def train(cfg: Config, check_data: bool = True) -> Path:
    """Train, and print where the results are.

    Ctrl-C stops after the current iteration with a checkpoint to resume from.

    Args:
        cfg: A complete config, see :mod:`flatten_det.engine.config`.
        check_data: Look for errors in the annotations first; no image is opened.

    Returns:
        The run's work dir.

    Raises:
        UserError: Data, config and checkpoint do not fit together, or a file is broken.
        KeyboardInterrupt: Training was interrupted; the message says how to go on.
    """
    interrupt = InterruptHook()
    try:
        with named_annotation_errors(cfg):
            runner = build_runner(cfg)
            for hook in (CheckImagesHook(), interrupt, ResumePositionHook()):
                runner.register_hook(hook)
            if check_data:
                check_before_training(cfg, runner.logger)
            runner.train()
    finally:
        interrupt.restore_handler()
    if runner.rank == 0:
        print(training_summary(runner))
    return Path(runner.work_dir)
