"""Train a detector or a segmentor from a config."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from ..config import build_runner, named_building_errors
from ..data.doctor.report import check_before_training
from ..data.loading import CheckImagesHook, CheckMetricsHook, named_annotation_errors
from ..files.atomic import atomic_local_files
from .assigner import batched_assignment
from .checkpoints import durable_checkpoints
from .finite_guard import non_finite_guard
from .lost_resources import told_with_last_checkpoint
from .optimizer import few_parameter_groups
from .precision import use_amp_of_cpu
from .resume import ResumePositionHook
from .sample_order import SeedIterationHook
from .stop import REPEAT_WITH_RESUME, InterruptHook
from .work_dir_lock import locked_work_dir


def training_summary(runner: Runner) -> str:
    """Name the checkpoints, the log and the drawn validation pictures of a finished run."""
    info = runner.message_hub.runtime_info
    log_dir = Path(runner.log_dir)
    entries = {
        "checkpoint": info.get("last_ckpt"),
        "best": info.get("best_ckpt"),
        "log": log_dir / f"{runner.timestamp}.log",
    }
    pictures = log_dir / "vis_data" / "vis_image"
    if pictures.is_dir():
        entries["pictures"] = pictures
    lines = [f"  {name:<11}{_short(path)}" for name, path in entries.items() if path]
    return "\n".join(["Training finished.", *lines])


def _short(path: str | Path) -> Path:
    path = Path(path)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def train(
    cfg: Config,
    check_data: bool = True,
    hooks: Sequence[Hook] = (),
    to_continue: str = REPEAT_WITH_RESUME,
    check_command: str = "",
) -> Path:
    """Train, and print where the results are.

    Ctrl-C, SIGTERM and SIGHUP stop after the current iteration with a checkpoint to resume from. After
    ``max_non_finite_updates`` (10; a field of the config) in a row whose loss or gradients are not
    finite, the training stops with a diagnosis; single ones are skipped.

    Args:
        cfg: A complete config, see :mod:`flatten_det.config`.
        check_data: Look for errors in the annotations first; no image is opened.
        hooks: More of them, beside those of the config.
        to_continue: What the user is told to do after the training was stopped.
        check_command: What shows the user all errors; default: ``check_data.py`` and the config's name.

    Returns:
        The run's work dir.

    Raises:
        UserError: Data, config and checkpoint do not fit together, a file is broken, or the
            training cannot go on for lack of memory, disk space or finite losses. Or another one is
            under way in the work dir.
        TrainingInterrupted: A KeyboardInterrupt; its message says how to go on.
    """
    interrupt = InterruptHook(to_continue)
    try:
        with (
            told_with_last_checkpoint(cfg.work_dir, to_continue),
            atomic_local_files(),
            durable_checkpoints(),
            few_parameter_groups(),
            batched_assignment(),
            named_building_errors(cfg) as stage,
            named_annotation_errors(cfg),
            _alone_in_work_dir(cfg),
        ):
            if get_device() == "cpu":
                use_amp_of_cpu(cfg)
            guard = non_finite_guard(cfg)
            runner = build_runner(cfg)
            for hook in (
                stage,
                CheckImagesHook(),
                CheckMetricsHook(),
                interrupt,
                ResumePositionHook(),
                SeedIterationHook(),
                *([guard] if guard else []),
                *hooks,
            ):
                runner.register_hook(hook)
            if check_data:
                check_before_training(cfg, runner.logger, check_command)
            runner.train()
    finally:
        interrupt.restore_handlers()
    if runner.rank == 0:
        print(training_summary(runner))
    return Path(runner.work_dir)


@contextlib.contextmanager
def _alone_in_work_dir(cfg: Config) -> Iterator[None]:
    """Lock the work dir for all ranks, which meet for it as the runner would have them do later."""
    if cfg.get("launcher", "none") != "none" and not is_distributed():
        env = cfg.get("env_cfg", {})
        set_multi_processing(**env.get("mp_cfg", {}), distributed=True)
        init_dist(cfg.launcher, **env.get("dist_cfg", {}))
    with locked_work_dir(cfg.work_dir):
        yield
