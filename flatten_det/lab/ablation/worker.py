"""A process that trains runs of a grid for another one, which gives them and is told how they go."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait

import torch
from mmengine.utils import import_modules_from_strings

from ...cli import use_matplotlib_without_display
from ...errors import explain
from ...train.stop import SIGNAL_NAMES, InterruptHook, TrainingInterrupted
from .grid import Run
from .run import Finished, finish

SIGNALS = tuple(SIGNAL_NAMES)
_REPORT_EVERY_S = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a run is. With the first one, it minds signals: InterruptHook saves its checkpoint.

    Attributes:
        done: its iterations so far.
        total: in all.
    """

    done: int
    total: int


@dataclass(frozen=True)
class Failure:
    """What ended a run, in words: not every exception can be sent to another process.

    Attributes:
        message: of a mistake of the user; None for an unexpected exception.
        traceback: as Python prints it.
    """

    message: str | None
    traceback: str = ""

    @property
    def summary(self) -> str:
        """One line."""
        return self.message or self.traceback.rstrip().rsplit("\n", 1)[-1]


Report = Progress | Finished | TrainingInterrupted | Failure


def work(connection: Connection, threads: int) -> None:
    """Train every run that comes, and send reports, until None comes or the other process ends.

    Between trainings signals do nothing, and SIGHUP never does. They may come from the terminal, or from
    a batch system, to all processes of a job; the other process knows what to do with one that does not
    train.

    Args:
        connection: gives :class:`~.grid.Run` or None, takes :data:`Report`.
        threads: of PyTorch.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # A config's own choice for its data workers; mmengine warns where it replaces another one.
    multiprocessing.set_start_method(None, force=True)
    InterruptHook.supervised = True
    torch.set_num_threads(threads)
    use_matplotlib_without_display()
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    # A connection breaks when the other process ends.
    with contextlib.suppress(EOFError, OSError):
        while (run := _next_run(connection)) is not None:
            connection.send(_train(run, connection.send))


def _next_run(connection: Connection) -> Run | None:
    wait([connection, parent_process().sentinel])
    return connection.recv() if connection.poll() else None


def _train(run: Run, send: Callable[[Report], object]) -> Report:
    last = -_REPORT_EVERY_S

    def advance(run: Run, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= _REPORT_EVERY_S:
            last = now
            try:
                send(Progress(done, total))
            except OSError:
                _stop()

    try:
        # mmengine imports them as it reads a config from a file, which was elsewhere.
        if modules := run.cfg.get("custom_imports"):
            import_modules_from_strings(**modules)
        return finish(run, advance)
    except TrainingInterrupted as stopped:
        return stopped
    except Exception as error:
        return Failure(explain(error), traceback.format_exc())


def _stop_with_parent() -> None:
    parent_process().join()
    _stop()


def _stop() -> None:
    """As a batch system does it, so that a training saves its checkpoint."""
    os.kill(os.getpid(), signal.SIGTERM)
