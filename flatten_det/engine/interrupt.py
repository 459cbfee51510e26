"""Stop a training with Ctrl-C or SIGTERM such that it can be resumed exactly where it stopped."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from .atomic_files import write_atomically
from .worker_signals import SurviveSigterm

CHECKPOINT_NAME = "interrupted.pth"
_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}


class TrainingInterrupted(KeyboardInterrupt):
    """The training stopped after Ctrl-C; its message says how to continue."""


class TrainingPreempted(TrainingInterrupted):
    """The training stopped after SIGTERM, as planned by whoever sent it: no failure."""

    exit_code = 0


class InterruptHook(Hook):
    """Turns Ctrl-C and SIGTERM into a checkpoint after the current iteration.

    A second Ctrl-C quits at once. SIGTERM is how batch systems announce that they need the
    machine (Slurm at the time limit, on pre-emption and with ``--signal=TERM@120``, Kubernetes
    when it evicts a pod), often repeatedly and to all processes; SIGKILL follows, after 30
    seconds by default. If both signals come, the first one counts.

    The run stops between two iterations, where a checkpoint can describe the state of mmengine's
    loops, but for two things: an epoch-based loop cannot restart in the middle of an epoch, and
    no loop makes up for a validation that was due. Both are noted in the checkpoint's
    ``meta['interrupted']``, for :class:`~flatten_det.engine.resume.ResumePositionHook`:

    - ``epoch_batches_done``: batches of the current epoch that were trained on;
    - ``epoch_batches``: batches per epoch, as the position means nothing for another number;
    - ``validation_due``: whether the run stopped before or in a validation.
    """

    # Before any other hook has counted or logged the iteration that will not take place.
    priority = "HIGHEST"
    # Ranks agree about stopping by a collective call, which costs a synchronization.
    ranks_agree_every = 5
    # torchrun passes on the Ctrl-C that the terminal has already sent to the ranks.
    same_keypress_s = 1.0

    def __init__(self) -> None:
        self._signal: int = 0
        self._requested_at = 0.0
        self._previous_handlers: dict[int, Any] = {}
        self._pid = os.getpid()

    def before_train(self, runner: Runner) -> None:
        """Take over both signals for the time of the training, and keep them from its workers."""
        # Only the main thread may set handlers; elsewhere the signals are not ours to handle.
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._on_signal)
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                loader = loop.dataloader
                loader.worker_init_fn = SurviveSigterm(loader.worker_init_fn)

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give the signals back; harmless when they were not taken."""
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Stop before the next iteration."""
        if _is_complete(runner) and (number := self._agreed_signal(runner.iter)):
            self._stop(runner, number, batch_idx)

    def before_val(self, runner: Runner) -> None:
        """Stop before a validation."""
        if _is_complete(runner) and (number := self._agreed_signal()):
            self._stop(runner, number, validation_due=True)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop within a validation.

        Not with weight averaging, which swaps the model's weights for the time of a validation,
        nor with several ranks, whose numbers of batches may differ: these finish it first.
        """
        averaging = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if self._signal and _is_complete(runner) and get_world_size() == 1 and not averaging:
            self._stop(runner, self._signal, validation_due=True)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # A forked DataLoader worker: its parent decides.
        now = time.monotonic()
        if not self._signal:
            self._signal = number
            self._requested_at = now
            hint = "; Ctrl-C again quits at once, without one" if number == signal.SIGINT else ""
            # Not by print, which a signal may have interrupted.
            message = f"\n{_NAMES[number]}: saving a checkpoint after this iteration{hint}\n"
            os.write(sys.stderr.fileno(), message.encode())
        elif number == signal.SIGINT and now - self._requested_at > self.same_keypress_s:
            raise TrainingInterrupted("interrupted at once, without a new checkpoint")

    def _agreed_signal(self, step: int = 0) -> int:
        """The signal to stop for, the same on all ranks; 0 to go on."""
        if get_world_size() == 1:
            return self._signal
        if step % self.ranks_agree_every:
            return 0
        number = torch.tensor(float(self._signal))
        all_reduce(number, op="max")
        return int(number)

    def _stop(
        self, runner: Runner, number: int, batch_idx: int = 0, validation_due: bool = False
    ) -> NoReturn:
        interrupted = {"validation_due": validation_due}
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            epoch_batches = runner.max_iters // runner.max_epochs
            # After a resume the loader has only the rest of an epoch.
            skipped = epoch_batches - len(runner.train_dataloader)
            interrupted["epoch_batches"] = epoch_batches
            interrupted["epoch_batches_done"] = 0 if validation_due else skipped + batch_idx
        path = Path(runner.work_dir, CHECKPOINT_NAME)
        runner.save_checkpoint(
            runner.work_dir,
            CHECKPOINT_NAME,
            meta={"epoch": runner.epoch, "iter": runner.iter, "interrupted": interrupted},
        )
        if is_main_process():
            write_atomically(path.with_name("last_checkpoint"), str(path).encode())
        stopped = TrainingPreempted if number == signal.SIGTERM else TrainingInterrupted
        raise stopped(
            f"{_NAMES[number]} after iteration {runner.iter}, saved {path}; "
            "to continue, repeat the command with --resume"
        )


def _is_complete(runner: Runner) -> bool:
    """Whether a checkpoint has everything: no gradients are accumulated for a later update."""
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()
