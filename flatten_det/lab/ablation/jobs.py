"""Train all runs of a grid, one after the other, or several at a time in processes or by an engine."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.pool import RemoteTraceback
from typing import Any, Protocol

import torch
from mmengine.utils import import_modules_from_strings

from ...cli import use_matplotlib_without_display
from ...errors import UserError, explain
from ...train.stop import (
    SIGNAL_NAMES,
    InterruptHook,
    TrainingInterrupted,
    TrainingPreempted,
    take_over_signals,
    tell,
)
from .grid import Run
from .run import TO_CONTINUE, Advance, Finished, finish, read_finished


class StopSignals:
    """Within a ``with`` block, signals are noted here instead of ending the process."""

    def __init__(self) -> None:
        self.number = (
            0  # of the first one, SIGTERM for SIGHUP and SIGUSR1; 0 as long as there is none
        )
        self.at_once = False  # Ctrl-C came again, or came while all was stopping already
        self._since = 0.0
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._previous_handlers = take_over_signals(self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Note that all is to stop, as if this signal had come; a further one changes nothing."""
        if not self.number:
            self.number = number
            self._since = time.monotonic()

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.number:
            again = time.monotonic() - self._since > InterruptHook.same_keypress_s
            self.at_once = self.at_once or (number == signal.SIGINT and again)
            return
        self.stop(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        hint = "; Ctrl-C again quits at once, without them" if number == signal.SIGINT else ""
        tell(f"\n{SIGNAL_NAMES[number]}: saving checkpoints after these iterations{hint}\n")


SIGNALS = tuple(SIGNAL_NAMES)
_REPORT_EVERY_S = 0.2


@dataclass(frozen=True)
class Progress:
    """Iterations of a run so far and in all. From the first one on, it minds signals."""

    done: int
    total: int


@dataclass(frozen=True)
class Failure:
    """What ended a run, in words: not every exception can be sent to another process."""

    message: str | None  # of a mistake of the user; None for an unexpected exception
    traceback: str = ""  # as Python prints it

    @property
    def summary(self) -> str:
        """One line."""
        return self.message or self.traceback.rstrip().rsplit("\n", 1)[-1]

    def as_error(self, run: Run) -> Exception:
        """To be raised in this process, caused by what happened in the other one."""
        if self.message is not None:
            error = UserError(self.message)
        else:
            error = RuntimeError(f"{run.name}: {self.summary}")
        error.__cause__ = RemoteTraceback(f"\n{self.traceback}") if self.traceback else None
        return error


Report = Progress | Finished | TrainingInterrupted | Failure


def work(connection: Connection, threads: int) -> None:
    """Train every :class:`~.grid.Run` that comes, and send reports, until None comes or the parent ends.

    Between trainings signals do nothing, and SIGHUP never does. They may come from the terminal, or from
    a batch system, to all processes of a job; the other process knows what to do with one that does not
    train.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    prepare_process(threads)
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    # A connection breaks when the other process ends.
    with contextlib.suppress(EOFError, OSError):
        while (run := _next_run(connection)) is not None:
            connection.send(train_and_report(run, connection.send))


def prepare_process(threads: int | None) -> None:
    """Make this process one that trains under the watch of another one, with so many threads if not None."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    # A config's own choice for its data workers; mmengine warns where it replaces another one.
    multiprocessing.set_start_method(None, force=True)
    InterruptHook.supervised = True
    if threads is not None:
        torch.set_num_threads(threads)
    use_matplotlib_without_display()


def _next_run(connection: Connection) -> Run | None:
    wait([connection, parent_process().sentinel])
    return connection.recv() if connection.poll() else None


def train_and_report(
    run: Run, send: Callable[[Progress], object], every_s: float = _REPORT_EVERY_S
) -> Report:
    """Train a run in this process; ``send`` gets its progress, and may raise an OSError to stop it."""
    last = -every_s

    def advance(run: Run, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= every_s:
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


# Not forked: neither PyTorch's threads nor CUDA survive that.
CONTEXT = multiprocessing.get_context("spawn")
_WAIT_S = 0.2
_GOODBYE_S = 10


class Worker(Protocol):
    """Has at most one run in hand, which is trained elsewhere."""

    run: Run | None  # in hand
    connection: (
        Connection | None
    )  # where something comes when there is a report, if there is such a thing

    def give(self, run: Run | None) -> None:
        """Have a run trained, when none is in hand; None: there is none left."""

    def receive(self) -> Report | None:
        """The next report; None if there is none yet. All but :class:`Progress` end the run in hand."""

    def stop(self, number: int) -> None:
        """Have a training save its checkpoint and end, as if this signal had come to it.

        What does not train yet is killed: it has nothing to save, and may be importing.
        """

    def kill(self) -> None:
        """End the run in hand at once."""

    def wait(self) -> None:
        """Wait until nothing is left of the worker."""


class ProcessWorker(Worker):
    """A process of this machine."""

    def __init__(self, threads: int) -> None:
        self.run = None
        self._trains = False
        self.connection, other_end = CONTEXT.Pipe()
        # No daemon: those may not have data workers.
        self._process = CONTEXT.Process(target=work, args=(other_end, threads))
        with signals_held_back():
            self._process.start()
        other_end.close()

    def give(self, run: Run | None) -> None:
        self.run = run
        # `receive` finds out that the process is dead.
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(run)

    def receive(self) -> Report | None:
        # Asked first: whatever a dead process has sent is there by now.
        alive, report = self._process.is_alive(), None
        if self.connection.poll():
            with contextlib.suppress(EOFError, OSError):
                report = self.connection.recv()
        elif alive:
            return None
        if report is None:
            self._process.join(_GOODBYE_S)
            report = self._death()
        self._trains = isinstance(report, Progress)
        if not self._trains:
            self.run = None
        return report

    def stop(self, number: int) -> None:
        if not self._trains:
            self.kill()
        elif self._process.is_alive():
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self.run = None

    def wait(self) -> None:
        self._process.join(_GOODBYE_S)
        self.kill()
        self.connection.close()

    def _death(self) -> Failure:
        code = self._process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", most likely as memory ran out (use fewer --jobs or smaller batches)"
        return Failure(f"{self.run.name}: its process {how}{TO_CONTINUE}")


# Given how many runs are to be trained at a time, it makes workers for a ``with`` block.
Engine = Callable[[int], AbstractContextManager[Callable[[], Worker]]]


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[Callable[[], Worker]]:
    """The :data:`Engine` of this machine: processes with an equal share of PyTorch's threads."""
    threads = max(1, torch.get_num_threads() // jobs)
    yield lambda: ProcessWorker(threads)


@contextlib.contextmanager
def _workers(count: int, make: Callable[[], Worker]) -> Iterator[list[Worker]]:
    """Workers for a ``with`` block; none of them is left after it."""
    workers = []
    try:
        for _ in range(count):
            workers.append(make())
        yield workers
    finally:
        for worker in workers:
            if worker.run:
                worker.kill()
            worker.give(None)
        for worker in workers:
            worker.wait()


def _busy(workers: Sequence[Worker]) -> list[Worker]:
    return [worker for worker in workers if worker.run]


def _reports(workers: Sequence[Worker]) -> Iterator[tuple[Run, Report]]:
    """New reports with their runs, if any comes within a moment."""
    busy = _busy(workers)
    wait([worker.connection for worker in busy if worker.connection], _WAIT_S)
    for worker in busy:
        run = worker.run
        if report := worker.receive():
            yield run, report


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """A process that is started meanwhile has them blocked from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Else it is started with the first process, which unblocks the signals.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


Each = Callable[[list[Finished]], object]


def finish_all(
    runs: Sequence[Run],
    advance: Advance = lambda run, done, total: None,
    each: Each = lambda outcomes: None,
    jobs: int = 1,
    engine: Engine | None = None,
) -> list[Finished]:
    """The outcomes of all runs, in their order.

    Folders of other configs are found before the first training. ``each`` is called with the outcomes so far,
    in the order of ``runs``, after every run. So many ``jobs`` are trained at a time by the
    ``engine``; without one in this process, if it is one at a time, else by :func:`processes`.

    Raises:
        UserError, TrainingInterrupted: see :func:`~.run.finish`; or the process of a run died. The other
            trainings are stopped with checkpoints.
    """
    finished = [run for run in runs if read_finished(run)]
    jobs = min(jobs, len(runs))
    if engine or jobs > 1:
        return _finish_side_by_side(runs, finished, advance, each, jobs, engine or processes)
    outcomes = []
    for run in runs:
        outcomes.append(finish(run, advance))
        each(outcomes)
    return outcomes


def _finish_side_by_side(
    runs: Sequence[Run],
    finished: Sequence[Run],
    advance: Advance,
    each: Each,
    jobs: int,
    engine: Engine,
) -> list[Finished]:
    outcomes = {run.name: finish(run, advance) for run in finished}

    def in_order() -> list[Finished]:
        return [outcomes[run.name] for run in runs if run.name in outcomes]

    if outcomes:
        each(in_order())
    waiting = deque(run for run in runs if run.name not in outcomes)
    if not waiting:
        return in_order()
    last: list[Report] = []
    count = min(jobs, len(waiting))
    with engine(jobs) as make, StopSignals() as signals, _workers(count, make) as workers:
        try:
            while (waiting or _busy(workers)) and not signals.number:
                for worker in workers:
                    if waiting and not worker.run:
                        worker.give(waiting.popleft())
                for run, report in _reports(workers):
                    if isinstance(report, Progress):
                        advance(run, report.done, report.total)
                    elif isinstance(report, Finished):
                        advance(run, report.iterations, report.iterations)
                        outcomes[run.name] = report
                        each(in_order())
                    elif isinstance(report, TrainingInterrupted):
                        # The signal came to that process alone.
                        last.append(report)
                        preempted = isinstance(report, TrainingPreempted)
                        signals.stop(signal.SIGTERM if preempted else signal.SIGINT)
                    else:
                        raise report.as_error(run)
        except BaseException:
            signals.stop()
            _stop_all(workers, signals)
            raise
        if len(outcomes) < len(runs):
            raise _interruption(signals, last + _stop_all(workers, signals))
    return in_order()


def _stop_all(workers: Sequence[Worker], signals: StopSignals) -> list[Report]:
    """Have all trainings save their checkpoints and end; returns what they said at last."""
    for worker in workers:
        worker.stop(signals.number)
    last: list[Report] = []
    while _busy(workers) and not signals.at_once:
        last += [report for _, report in _reports(workers) if not isinstance(report, Progress)]
    return last


def _interruption(signals: StopSignals, last: Sequence[Report]) -> TrainingInterrupted:
    if signals.at_once:
        return TrainingInterrupted(f"interrupted at once, without new checkpoints{TO_CONTINUE}")
    lines = [str(report) for report in last if isinstance(report, TrainingInterrupted)]
    lines += [report.summary for report in last if isinstance(report, Failure)]
    lines = [line.removesuffix(TO_CONTINUE) for line in lines]
    kind = TrainingPreempted if signals.number == signal.SIGTERM else TrainingInterrupted
    return kind("\n".join(lines or [SIGNAL_NAMES[signals.number]]) + TO_CONTINUE)
