"""Train a detector or a segmentor from a config."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO

import torch
from mmdet.models.task_modules import AssignResult, MaxIoUAssigner
from mmdet.registry import TASK_UTILS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS, VISBACKENDS
from mmengine.runner import Runner
from torch import Tensor

from ..cli import as_shown
from ..compat.patches import atomic_local_files
from ..config import build_runner
from ..data.doctor.check import check_before_training
from ..data.loading import CheckFilesHook
from ..distributed import connect, from_first_process
from ..errors import UserError
from ..files.atomic import lock
from .checkpoints import DurableCheckpointHook
from .finite_guard import non_finite_guard
from .logs import LOGS, LogsHook, open_logs
from .optimizer import GroupingOptimWrapperConstructor, use_amp_of_cpu
from .resume import ResumePositionHook, SeedIterationHook
from .sharding import ShardedRunner
from .stop import REPEAT_WITH_RESUME, InterruptHook, explain_stop


def train(
    cfg: Config,
    check_data: bool = True,
    hooks: Sequence[Hook] = (),
    to_continue: str = REPEAT_WITH_RESUME,
    check_command: str = "",
    logs: Sequence[str] = (),
    strategy: str = "ddp",
) -> Path:
    """Train, print where the results are, and return the work dir.

    Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP stop after the current iteration with a checkpoint to resume from.
    After ``max_non_finite_updates`` (10; a field of the config) in a row whose loss or gradients are not
    finite, the training stops with a diagnosis; single ones are skipped.

    Args:
        cfg: A complete config; :func:`.resume.resume_from` has it resume.
        check_data: Look for errors in the annotations first; no image is opened.
        hooks: More of them, beside those of the config.
        to_continue: What the user is told to do after the training was stopped.
        check_command: What shows the user all errors; default: ``check_data.py`` and the config's name.
        logs: Names of :data:`.logs.LOGS`, which are written besides those of the config.
        strategy: What several processes share, a name in :data:`STRATEGIES`.

    Raises:
        UserError: Data, config and checkpoint do not fit together, a file is broken, or the
            training cannot go on for lack of memory, disk space or finite losses. Or another one is
            under way in the work dir.
        TrainingInterrupted: A KeyboardInterrupt; its message says how to go on.
    """
    with (
        InterruptHook(to_continue) as interrupt,
        LogsHook(cfg, logs) as logs_hook,
        explain_stop(cfg, to_continue) as stage,
        atomic_local_files(),
        use_our_components(),
        _alone_in_work_dir(cfg),
    ):
        if get_device() == "cpu":
            use_amp_of_cpu(cfg)
        guard = non_finite_guard(cfg)
        if strategy != "ddp" and "runner_type" in cfg:
            raise UserError(
                f"--strategy {strategy} needs a runner of its own: leave out runner_type"
            )
        runner = build_runner(cfg, STRATEGIES[strategy])
        for hook in (
            stage,
            CheckFilesHook(),
            interrupt,
            logs_hook,
            ResumePositionHook(),
            SeedIterationHook(),
            *([guard] if guard else []),
            *hooks,
        ):
            runner.register_hook(hook)
        if check_data:
            check_before_training(cfg, runner.logger, check_command)
        runner.train()
    if runner.rank == 0:
        print(summary(runner))
    return Path(runner.work_dir)


# By what the command line calls them; mmengine's own has whole weights in every process.
STRATEGIES = {"ddp": Runner, "fsdp": ShardedRunner}


def summary(runner: Runner) -> str:
    """Name the checkpoints, the log and the drawn validation pictures of a finished run."""
    info = runner.message_hub.runtime_info
    pictures = Path(runner.log_dir, "vis_data", "vis_image")
    paths = {
        "checkpoint": info.get("last_ckpt"),
        "best": info.get("best_ckpt"),
        "log": log_file(runner),
        "pictures": pictures if pictures.is_dir() else None,
    }
    entries = {name: as_shown(path) for name, path in paths.items() if path}
    entries.update(places_of_logs(runner))
    return "\n".join(["Training finished.", *(f"  {k:<12}{v}" for k, v in entries.items())])


def log_file(runner: Runner) -> Path:
    """Where all that is told of a run is written."""
    return Path(runner.log_dir, f"{runner.timestamp}.log")


def places_of_logs(runner: Runner) -> dict[str, str]:
    """Where TensorBoard and the like show the training, by their names."""
    places = {type(log): log.place for log in open_logs(runner)}
    return {name: places[log] for name, log in LOGS.items() if log in places}


class BatchedMaxIoUAssigner(MaxIoUAssigner):
    """MMDetection's ``MaxIoUAssigner`` with the low-quality matches of all objects at once.

    There each object takes three to seven operators, one of which waits for the device: about a tenth of
    all operators of a training step of the nano Mask R-CNN. Arguments and results are the same.
    """

    def assign_wrt_overlaps(self, overlaps: Tensor, gt_labels: Tensor) -> AssignResult:
        """Assign boxes to objects, by their IoU ``(num_gts, num_bboxes)`` and labels ``(num_gts,)``."""
        if not (self.match_low_quality and self.gt_max_assign_all and overlaps.numel()):
            return super().assign_wrt_overlaps(overlaps, gt_labels)
        self.match_low_quality = False
        try:
            result = super().assign_wrt_overlaps(overlaps, gt_labels)
        finally:
            self.match_low_quality = True
        best = overlaps.amax(dim=1, keepdim=True)
        matches = (overlaps == best) & (best >= self.min_pos_iou)
        # A box that is the best of several objects goes to the last one.
        numbers = torch.arange(1, len(overlaps) + 1, dtype=torch.int32, device=overlaps.device)
        last = (matches * numbers[:, None]).amax(dim=0).long()
        result.gt_inds = torch.where(last > 0, last, result.gt_inds)
        result.labels = torch.where(last > 0, gt_labels[last - 1], result.labels)
        return result


# By registry: what takes the place of the class that it inherits from, whose name configs use.
REPLACEMENTS = {
    HOOKS: DurableCheckpointHook,
    OPTIM_WRAPPER_CONSTRUCTORS: GroupingOptimWrapperConstructor,
    TASK_UTILS: BatchedMaxIoUAssigner,
}


@contextlib.contextmanager
def use_our_components() -> Iterator[None]:
    """Let configs that name a class of the frameworks have our :data:`REPLACEMENTS`.

    Not by a changed config, as that is stored beside the results, for tools without flatten_det.
    """
    replaced = [(registry, ours, ours.__base__) for registry, ours in REPLACEMENTS.items()]
    replaced += [(VISBACKENDS, log, VISBACKENDS.get(log.__name__)) for log in LOGS.values()]
    for registry, ours, theirs in replaced:
        registry.register_module(name=theirs.__name__, module=ours, force=True)
    try:
        yield
    finally:
        for registry, _, theirs in replaced:
            registry.register_module(name=theirs.__name__, module=theirs, force=True)


@contextlib.contextmanager
def _alone_in_work_dir(cfg: Config) -> Iterator[None]:
    """Lock the work dir for all ranks, which meet for it as the runner would have them do later."""
    connect(cfg)
    with locked_work_dir(cfg.work_dir):
        yield


LOCK_NAME = ".flatten_det.lock"
_MAX_NOTE = 200  # characters

# Of this process, by work dir; None where another rank has the lock, or nobody can.
_held: dict[Path, IO | None] = {}


def _forget_in_child() -> None:
    """Data workers, which outlive a killed training for seconds, do not hold its lock."""
    for file in filter(None, _held.values()):
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextlib.contextmanager
def locked_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Keep other trainings out of a folder; of several ranks, the first one does so for all.

    Within another one for the same folder it changes nothing. The lock is the system's, of an open
    file: it ends with the process, whatever becomes of the file. Where there are no locks, a warning
    says so. If another process trains there, a UserError says which one, on all ranks.
    """
    folder = Path(os.path.realpath(work_dir))
    if folder in _held:
        yield
        return
    if (refusal := from_first_process(lambda: _lock(folder, work_dir))) is not None:
        raise UserError(refusal)
    _held.setdefault(folder)
    try:
        yield
    finally:
        if (file := _held.pop(folder, None)) is not None:
            # Windows removes no open file.
            with contextlib.suppress(OSError):
                os.unlink(folder / LOCK_NAME)
            file.close()


def _lock(folder: Path, shown: str | Path) -> str | None:
    """Why not, if another process has the lock."""
    path = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
            if not lock(file):
                file.seek(0)
                holder = file.readline(_MAX_NOTE).strip() or "which does not say who it is"
                file.close()
                return (
                    f"work dir {shown} is in use by another training ({holder}): wait for its end, or "
                    "give another folder"
                )
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                break
            file.close()  # Its holder removed it meanwhile.
    except OSError as error:
        print(
            f"warning: work dir {shown} cannot be locked ({error.strerror}): make sure that no other "
            "training uses it",
            file=sys.stderr,
        )
        return None
    _held[folder] = file
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with contextlib.suppress(OSError):  # On a full disk.
        file.truncate(0)
        holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
        os.write(file.fileno(), holder.encode())
    return None
