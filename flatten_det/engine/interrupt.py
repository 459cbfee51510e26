"""Stop a training with Ctrl-C such that it can be resumed exactly where it stopped."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner

from .atomic_files import write_atomically

CHECKPOINT_NAME = "interrupted.pth"


class TrainingInterrupted(KeyboardInterrupt):
    """The training stopped after Ctrl-C; its message says how to continue."""


class InterruptHook(Hook):
    """Turns Ctrl-C into a checkpoint after the current iteration; a second one quits at once.

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
        self._requested_at: float | None = None
        self._previous_handler = None
        self._pid = os.getpid()

    def before_train(self, runner: Runner) -> None:
        """Take over SIGINT for the time of the training."""
        # Only the main thread may set handlers; elsewhere Ctrl-C is not ours to handle.
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGINT, self._on_sigint)

    def after_train(self, runner: Runner) -> None:
        """Give SIGINT back."""
        self.restore_handler()

    def restore_handler(self) -> None:
        """Give SIGINT back; harmless when it was not taken."""
        if self._previous_handler is not None:
            signal.signal(signal.SIGINT, self._previous_handler)
            self._previous_handler = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Stop before the next iteration."""
        if _is_complete(runner) and self._stop_agreed(runner.iter):
            self._stop(runner, batch_idx)

    def before_val(self, runner: Runner) -> None:
        """Stop before a validation."""
        if _is_complete(runner) and self._stop_agreed():
            self._stop(runner, validation_due=True)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop within a validation.

        Not with weight averaging, which swaps the model's weights for the time of a validation,
        nor with several ranks, whose numbers of batches may differ: these finish it first.
        """
        averaging = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        requested = self._requested_at is not None
        if requested and _is_complete(runner) and get_world_size() == 1 and not averaging:
            self._stop(runner, validation_due=True)

    def _on_sigint(self, signum, frame) -> None:
        if os.getpid() != self._pid:
            return  # A forked DataLoader worker: its parent decides.
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
            print(
                "\ninterrupt: saving a checkpoint after this iteration; "
                "Ctrl-C again quits at once, without one",
                file=sys.stderr,
                flush=True,
            )
        elif now - self._requested_at > self.same_keypress_s:
            raise TrainingInterrupted("interrupted at once, without a new checkpoint")

    def _stop_agreed(self, step: int = 0) -> bool:
        """Whether to stop, the same on all ranks."""
        if get_world_size() == 1:
            return self._requested_at is not None
        if step % self.ranks_agree_every:
            return False
        requested = torch.tensor(float(self._requested_at is not None))
        all_reduce(requested, op="max")
        return bool(requested)

    def _stop(self, runner: Runner, batch_idx: int = 0, validation_due: bool = False) -> NoReturn:
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
        raise TrainingInterrupted(
            f"interrupted after iteration {runner.iter}, saved {path}; "
            "to continue, repeat the command with --resume"
        )


def _is_complete(runner: Runner) -> bool:
    """Whether a checkpoint has everything: no gradients are accumulated for a later update."""
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()
