"""What ends a training before its time: a signal, lost memory or disk, losses that are not finite."""

import contextlib
import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ..cli import INTERRUPT_EXIT
from ..config import StageHook, blame_config
from ..data.loading import blame_annotation_files
from ..distributed import launcher, started_by_us
from ..errors import NO_ROOM, UserError, explain, is_first_process, is_out_of_memory
from ..files.atomic import UnwritableError, write_atomically
from .checkpoints import NoCheckpointError, newest_valid_checkpoint
from .finite_guard import NonFiniteError
from .resume import is_complete

CHECKPOINT_NAME = "interrupted.pth"
REPEAT_WITH_RESUME = "repeat the command with --resume"
SIGNAL_NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated (SIGTERM)"}
if hasattr(signal, "SIGHUP"):  # Not on Windows.
    SIGNAL_NAMES[signal.SIGHUP] = "its terminal was closed (SIGHUP)"
    SIGNAL_NAMES[signal.SIGUSR1] = "pre-empted (SIGUSR1)"
_WORKER_DIED = re.compile(r"DataLoader worker \(pid.*?\) (?:is )?(killed by signal: \w+|exited)")


class TrainingInterrupted(KeyboardInterrupt):
    """The training stopped after Ctrl-C; its message says how to continue."""

    exit_code = INTERRUPT_EXIT
    number: int | None = None  # of the signal, after which a checkpoint was saved


class TrainingPreempted(TrainingInterrupted):
    """The training stopped after SIGTERM, SIGUSR1 or SIGHUP, as planned by whoever sent it: no failure."""

    exit_code = 0


class TrainingStopped(UserError):
    """The training cannot go on. The message says why, and from which checkpoint it could."""


class InterruptHook(Hook):
    """Turns Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP into a checkpoint after the current iteration.

    A second Ctrl-C quits at once. SIGTERM is how batch systems announce that they need the
    machine (Slurm at the time limit and on pre-emption, Kubernetes when it evicts a pod), often
    repeatedly and to all processes; SIGKILL follows, after 30 seconds by default. SIGUSR1 is the
    usual choice for Slurm's ``--signal=USR1@120``, which comes earlier. SIGHUP says that the
    terminal is gone. If several signals come, the first one counts.

    The run stops between two iterations, where a checkpoint can describe the state of mmengine's
    loops. Its ``meta['position']['validation_due']`` says whether it stopped before or in a
    validation; the rest of the position comes from
    :class:`~flatten_det.train.resume.ResumePositionHook`, which goes on from it too.

    The signals are given back at the end of the training, or of a ``with`` block of the hook. The user is
    told ``to_continue`` in order to continue.
    """

    # Before any other hook has counted or logged the iteration that will not take place.
    priority = "HIGHEST"
    # Ranks agree about stopping by a collective call, which costs a synchronization.
    ranks_agree_every = 5
    # torchrun passes on the Ctrl-C that the terminal has already sent to the ranks.
    same_keypress_s = 1.0
    # Where one process watches over several trainings, the terminal and a second Ctrl-C are its own.
    supervised = False

    def __init__(self, to_continue: str = REPEAT_WITH_RESUME) -> None:
        self._to_continue = to_continue
        self._signal: int = 0
        self._requested_at = 0.0
        self._previous_handlers: dict[int, Any] = {}
        self._pid = os.getpid()

    def before_train(self, runner: Runner) -> None:
        """Take over the signals for the time of the training, and keep them from its workers."""
        self._previous_handlers = take_over_signals(self._on_signal)
        if not self._previous_handlers:
            return
        for loop in (runner.train_loop, runner.val_loop):
            if loop is not None:
                loader = loop.dataloader
                loader.worker_init_fn = SurviveSigterm(loader.worker_init_fn)

    def after_train(self, runner: Runner) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give the signals back; harmless when they were not taken."""
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def __enter__(self) -> "InterruptHook":
        return self

    def __exit__(self, *error: object) -> None:
        self.restore_handlers()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        if is_complete(runner) and (number := self._agreed_signal(runner.iter)):
            self._stop(runner, number)

    def before_val(self, runner: Runner) -> None:
        if is_complete(runner) and (number := self._agreed_signal()):
            self._stop(runner, number, validation_due=True)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop within a validation.

        Not with weight averaging, which swaps the model's weights for the time of a validation,
        nor with several ranks, whose numbers of batches may differ: these finish it first.
        """
        averaging = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if self._signal and is_complete(runner) and get_world_size() == 1 and not averaging:
            self._stop(runner, self._signal, validation_due=True)

    def _on_signal(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # A forked DataLoader worker: its parent decides.
        now = time.monotonic()
        is_first = not self._signal
        if is_first:
            self._signal, self._requested_at = number, now
        if self.supervised:
            return
        if is_first:
            hint = "; Ctrl-C again quits at once, without one" if number == signal.SIGINT else ""
            if is_first_process():
                tell(f"\n{SIGNAL_NAMES[number]}: saving a checkpoint after this iteration{hint}\n")
        elif number == signal.SIGINT and now - self._requested_at > self.same_keypress_s:
            raise TrainingInterrupted(
                f"interrupted at once, without a new checkpoint; to continue, {self._to_continue}"
            )

    def _agreed_signal(self, step: int = 0) -> int:
        """The signal to stop for, the same on all ranks; 0 to go on."""
        if get_world_size() == 1:
            return self._signal
        if step % self.ranks_agree_every:
            return 0
        number = torch.tensor(float(self._signal))
        all_reduce(number, op="max")
        return int(number)

    def _stop(self, runner: Runner, number: int, validation_due: bool = False) -> NoReturn:
        path = Path(runner.work_dir, CHECKPOINT_NAME)
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        meta["position"] = {"validation_due": validation_due}
        runner.save_checkpoint(runner.work_dir, CHECKPOINT_NAME, meta=meta)
        if is_main_process():
            write_atomically(path.with_name("last_checkpoint"), str(path).encode())
        kind = TrainingInterrupted if number == signal.SIGINT else TrainingPreempted
        stopped = kind(
            f"{SIGNAL_NAMES[number]} after iteration {runner.iter}, saved {path}; "
            f"to continue, {self._to_continue}"
        )
        stopped.number = number
        if not self._signal and launcher() == "pytorch" and not started_by_us():
            # The signal came to another machine, whose torchrun ends. This one's would take 0 as done.
            stopped.exit_code = 128 + number
        raise stopped


def take_over_signals(handler: Callable[[int, Any], None] | signal.Handlers) -> dict[int, Any]:
    """Have a function called for the signals that stop a training; returns their former handlers.

    A SIGHUP that is ignored stays so, as ``nohup`` wants it.
    """
    # Only the main thread may set handlers; elsewhere the signals are not ours to handle.
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        number: signal.signal(number, handler)
        for number in SIGNAL_NAMES
        if number != getattr(signal, "SIGHUP", 0) or signal.getsignal(number) != signal.SIG_IGN
    }


def end_undisturbed() -> None:
    """Ignore the signals that stop a training, but for Ctrl-C, in a process whose work is done.

    It takes a second or two to end, and is not to fail by what comes then.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    if signal.SIGINT in take_over_signals(signal.SIG_IGN):
        signal.signal(signal.SIGINT, interrupt)


def tell(message: str) -> None:
    """Write to standard error from within a signal handler, where print may be under way; if it is open."""
    with contextlib.suppress(OSError):
        os.write(2, message.encode())


class SurviveSigterm:
    """A ``worker_init_fn``: in the worker, only its parent's SIGTERM counts, and neither SIGHUP nor SIGUSR1.

    A batch system or ``timeout`` sends SIGTERM or SIGUSR1 to every process of a job, a terminal that is
    closed SIGHUP. A worker that dies of it takes the iteration down that the training wants to finish and
    save. When the training ends, it ends its workers itself, or they notice that it is gone. ``init``,
    the data loader's own ``worker_init_fn``, is called as well.
    """

    def __init__(self, init: Callable[[int], None] | None = None) -> None:
        self._init = init

    def __call__(self, worker_id: int) -> None:
        if hasattr(signal, "SIGHUP"):
            for number in (signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
        # macOS and Windows do not tell who sent a signal: there, all is as PyTorch has it.
        if hasattr(signal, "sigwaitinfo"):
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            threading.Thread(target=_exit_on_parents_sigterm, daemon=True).start()
        if self._init is not None:
            self._init(worker_id)


def _exit_on_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    # As PyTorch does on its parent's SIGTERM: anything else would be reported as a crash.
    os._exit(0)


@contextlib.contextmanager
def explain_stop(cfg: Config, to_continue: str = REPEAT_WITH_RESUME) -> Iterator[StageHook]:
    """Explain what stops a training: what its config says, a broken annotation file, or the machine.

    The user is told ``to_continue`` in order to go on from the last checkpoint. Yields a hook for the
    runner, as :func:`~flatten_det.config.blame_config` does.

    Raises:
        UserError: It is the fault of the config, the checkpoint or an annotation file.
        TrainingStopped: It is not: for a full disk or memory, a data worker that died, or losses that
            are not finite. It names the checkpoint to go on from.
    """
    try:
        with blame_config(cfg) as stage, blame_annotation_files(cfg):
            yield stage
    except Exception as error:
        if (reason := _fault_of_the_machine(error)) is None:
            raise
        last = _last_checkpoint(cfg.work_dir, to_continue)
        raise TrainingStopped(f"{reason}. {last}") from error


def _fault_of_the_machine(error: Exception) -> str | None:
    if isinstance(error, UnwritableError | NonFiniteError):
        return str(error)
    is_of_disk = isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EROFS)
    if is_of_disk or is_out_of_memory(error):
        return explain(error)
    # PyTorch raises it wherever the training is at that moment, which may make another error of it.
    cause: BaseException | None = error
    seen = set()  # An error may be its own cause.
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, RuntimeError) and (died := _WORKER_DIED.search(str(cause))):
            return (
                f"a data worker died ({died[1]}), most likely as memory ran out ({_free_memory()}): use "
                "fewer workers (--cfg-options train_dataloader.num_workers=1 "
                "val_dataloader.num_workers=1) or smaller batches, or give a container more shared "
                "memory (docker run --shm-size)"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def _free_memory() -> str:
    """Of the whole machine; a container's or job's own limit may be lower."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        free.append(f"{int(kilobytes) / 1e6:.1f} GB of RAM")
    with contextlib.suppress(OSError):
        free.append(f"{shutil.disk_usage('/dev/shm').free / 1e9:.1f} GB of /dev/shm")
    return f"free now: {' and '.join(free) or 'unknown'}"


def _last_checkpoint(work_dir: str | Path, to_continue: str) -> str:
    """What resuming would go on from, which may be newer than what ``last_checkpoint`` names."""
    try:
        path = newest_valid_checkpoint(work_dir)
    except NoCheckpointError:
        return "No checkpoint was saved yet"
    except UserError as error:
        message = str(error)
        return message[0].upper() + message[1:]
    return f"The last checkpoint is {path}: to go on from there, {to_continue}"
