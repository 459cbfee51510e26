"""Train a run of a grid; what is finished is kept, what was stopped goes on."""

import contextlib
import copy
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...errors import UserError
from ...train.checkpoints import NoCheckpointError
from ...train.resume import resume_from
from ...train.run import locked_work_dir, train
from ...train.stop import TrainingInterrupted, TrainingStopped
from ..output import write_json
from .grid import Run

RECORD = "run.json"
REPEAT = "repeat the command"
TO_CONTINUE = f"; to continue, {REPEAT}"
Advance = Callable[[Run, int, int], object]


@dataclass(frozen=True)
class Finished:
    """The outcome of a run."""

    variant: str
    seed: int
    # `iteration`, and `metrics` by name; in their order, the last one at the end of the training.
    validations: Sequence[dict]
    iterations: int
    parameters: int  # of the model
    seconds: float  # of the training, all its parts together

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last validation, by name."""
        return self.validations[-1]["metrics"]


class _Watch(Hook):
    """Tells how far a training is, and notes its ``validations``, after each of which it calls ``keep``."""

    def __init__(
        self, advance: Callable[[int, int], object], validations: list[dict], keep: Callable
    ) -> None:
        self._advance, self._validations, self._keep = advance, validations, keep
        self.iterations = self.parameters = 0

    def before_train(self, runner: Runner) -> None:
        if runner.val_loop is None:
            raise UserError(
                "the config has no validation to compare runs by: give it val_cfg, val_dataloader and "
                "val_evaluator"
            )
        self.parameters = sum(p.numel() for p in runner.model.parameters())
        self.iterations = runner.max_iters
        self._advance(runner.iter, runner.max_iters)

    def after_train_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._advance(runner.iter + 1, runner.max_iters)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        values = {name: float(value) for name, value in (metrics or {}).items()}
        # A training goes on from its last checkpoint: what came after that comes again.
        earlier = [v for v in self._validations if v["iteration"] < runner.iter]
        self._validations[:] = [*earlier, dict(iteration=runner.iter, metrics=values)]
        self._keep()


def read_finished(run: Run) -> Finished | None:
    """The outcome of a run that is finished already, else None; UserError for a run of another config."""
    record = _read_record(run)
    return _finished(run, record) if record["finished"] else None


def finish(run: Run, advance: Advance = lambda run, done, total: None) -> Finished:
    """The outcome of a run, which is trained, or trained on, if need be.

    ``advance`` is called with the run, its iterations so far and in all, for a finished one as well.

    Raises:
        UserError: The folder holds a run of another config, or one that is under way, or the training
            cannot go on.
        TrainingInterrupted: by Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP; its message says how to go on.
    """
    if finished := read_finished(run):
        advance(run, finished.iterations, finished.iterations)
        return finished
    with locked_work_dir(run.folder):
        return _finish(run, advance)


def _finish(run: Run, advance: Advance) -> Finished:
    record = _read_record(run)
    spent, validations = record["seconds"], record["validations"]
    write_json(record, run.folder / RECORD)
    cfg = copy.deepcopy(run.cfg)
    if "visualizer" in cfg:
        # mmengine keeps visualizers by name as long as the process lives: with the name that all configs
        # share, every run's losses would go into the first one's files.
        cfg.visualizer.name = cfg.experiment_name
    with contextlib.suppress(NoCheckpointError):
        resume_from(cfg, "auto")
    start = time.monotonic()

    def keep() -> None:
        record["seconds"] = spent + time.monotonic() - start
        write_json(record, run.folder / RECORD)

    watch = _Watch(lambda done, total: advance(run, done, total), validations, keep)
    try:
        # The summary of each training is not for the terminal, which has the progress bar.
        with contextlib.redirect_stdout(io.StringIO()):
            train(cfg, hooks=[watch], to_continue=REPEAT)
    except (TrainingInterrupted, TrainingStopped) as stopped:
        stopped.args = (f"{run.name}: {stopped}",)
        raise
    finally:
        keep()
    if not validations or validations[-1]["iteration"] < watch.iterations:
        raise UserError(
            f"config of variant {run.variant} has no validation at its end: set train_cfg.val_interval "
            "to a divisor of its iterations"
        )
    record["finished"] = {"iterations": watch.iterations, "parameters": watch.parameters}
    write_json(record, run.folder / RECORD)
    return _finished(run, record)


def _finished(run: Run, record: dict) -> Finished:
    validations, seconds = record["validations"], record["seconds"]
    return Finished(run.variant, run.seed, validations, seconds=seconds, **record["finished"])


def _read_record(run: Run) -> dict:
    path = run.folder / RECORD
    new = {"fingerprint": run.fingerprint, "seconds": 0.0, "validations": [], "finished": None}
    try:
        record = json.loads(path.read_text())
        found = record["fingerprint"]
        if record.keys() != new.keys():
            raise KeyError
    except FileNotFoundError:
        return new
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged: remove the folder {run.folder} to train anew"
        ) from error
    if found != run.fingerprint:
        raise UserError(
            f"{run.folder} holds a run with another config or other --cfg-options: give another --out, or "
            "remove that folder"
        )
    return record
