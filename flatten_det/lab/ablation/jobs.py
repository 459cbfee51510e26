"""Train all runs of a grid, one after the other, or several at a time by an engine.

An engine starts a run and brings its outcome. While it trains, this command and the run talk by files in the
run's folder, which both see: the run says how far it is in one, and the command has it stop by the other, as
what the engines have for that need not leave a training the time to save.
"""

import contextlib
import json
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
from importlib import import_module
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.pool import RemoteTraceback
from typing import Any, Protocol

import torch
from mmengine.utils import import_modules_from_strings

from ...cli import use_matplotlib_without_display
from ...errors import UserError, explain, reason_of
from ...files.atomic import write_atomically
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

PROGRESS, STOP = "progress.json", "stop"
_SIGNALS = tuple(SIGNAL_NAMES)
_PREEMPTION = getattr(signal, "SIGUSR1", None)  # None on Windows
_LOOK_EVERY_S = 0.5
_WAIT_S = 0.1
_GOODBYE_S = 10


class StopSignals:
    """Within a ``with`` block, signals are noted here instead of ending the process."""

    def __init__(self) -> None:
        # Of the first one, SIGTERM for SIGHUP and SIGUSR1; 0 as long as there is none.
        self.number = 0
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


Report = Finished | TrainingInterrupted | Failure


@dataclass(frozen=True)
class RemoteTraining:
    """Trains a run in the process that an engine has for it."""

    run: Run
    here: str  # folder that the command was started in, where relative paths begin
    threads: int | None  # of PyTorch; None: its own choice

    def __call__(self) -> Report:
        """Train; returns what ended it."""
        os.chdir(self.here)
        # A training has handlers of its own. Before and after it, a pre-emption is left to the engine.
        ignored = {n: signal.signal(n, signal.SIG_IGN) for n in _SIGNALS if n != _PREEMPTION}
        ended = threading.Event()
        obedience = threading.Thread(target=self._obey, args=(ended,), daemon=True)
        obedience.start()
        try:
            _prepare_process(self.threads)
            report = self._train()
        finally:
            ended.set()
            obedience.join()  # Its signals are for the training alone.
            for number, handler in ignored.items():
                signal.signal(number, handler)
        if isinstance(report, TrainingPreempted) and report.number == _PREEMPTION:
            # Saved: now submitit has the job queued again, and Ray starts a process that died again.
            signal.raise_signal(_PREEMPTION)
        return report

    def checkpoint(self) -> Any:
        """What submitit queues after a pre-emption."""
        return import_module("submitit.helpers").DelayedSubmission(self)

    def _train(self) -> Report:
        last = -_LOOK_EVERY_S

        def advance(run: Run, done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if done == total or now - last >= _LOOK_EVERY_S:
                last = now
                with contextlib.suppress(OSError):  # A full disk, which the training tells of.
                    content = json.dumps([done, total]).encode()
                    write_atomically(run.folder / PROGRESS, content, durable=False)

        try:
            # mmengine imports them as it reads a config from a file, which was elsewhere.
            if modules := self.run.cfg.get("custom_imports"):
                import_modules_from_strings(**modules)
            return finish(self.run, advance)
        except TrainingInterrupted as stopped:
            return stopped
        except Exception as error:
            return Failure(explain(error), traceback.format_exc())

    def _obey(self, ended: threading.Event) -> None:
        """Send this process the signal that the command left, or that it ended, until the training ends."""
        parent = parent_process()  # None, where the command did not start this process itself
        while not ended.wait(_LOOK_EVERY_S):
            if parent and not parent.is_alive():
                os.kill(os.getpid(), signal.SIGTERM)
            with contextlib.suppress(OSError, ValueError):
                os.kill(os.getpid(), int((self.run.folder / STOP).read_text()))


def _prepare_process(threads: int | None) -> None:
    """Make this process one that trains under the watch of another one, with so many threads if not None."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    # A config's own choice for its data workers; mmengine warns where it replaces another one.
    multiprocessing.set_start_method(None, force=True)
    InterruptHook.supervised = True
    if threads is not None:
        torch.set_num_threads(threads)
    use_matplotlib_without_display()


class Job(Protocol):
    """A training that was given to an engine."""

    def done(self) -> bool:
        """Whether :meth:`result` need not wait."""

    def result(self) -> Report:
        """What ended the training; any exception if the engine could not bring it to that."""

    def cancel(self) -> None:
        """End it, or have it not begin, without waiting for what it would save."""


# Given how many runs are to be trained at a time, it gives for a ``with`` block what submits a run.
Engine = Callable[[int], AbstractContextManager[Callable[[Run], Job]]]
# Not forked: neither PyTorch's threads nor CUDA survive that.
CONTEXT = multiprocessing.get_context("spawn")


class _ProcessJob:
    """A :class:`Job` in a process of this machine."""

    def __init__(self, training: RemoteTraining) -> None:
        self._name = training.run.name
        self._connection, other_end = CONTEXT.Pipe(duplex=False)
        # No daemon: those may not have data workers.
        self._process = CONTEXT.Process(target=_work, args=(training, other_end))
        with signals_held_back():
            self._process.start()
        other_end.close()

    def done(self) -> bool:
        return self._connection.poll() or not self._process.is_alive()

    def result(self) -> Report:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_GOODBYE_S)
            return self._death()
        finally:
            self._process.join(_GOODBYE_S)
            self.cancel()

    def cancel(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _death(self) -> Failure:
        code = self._process.exitcode
        how = f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", most likely as memory ran out (use fewer --jobs or smaller batches)"
        return Failure(f"{self._name}: its process {how}{TO_CONTINUE}")


def _work(training: RemoteTraining, connection: Connection) -> None:
    # They may come from the terminal, or from a batch system, to all processes of a job; the other process
    # knows what to do with one that does not train.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # The other process has ended.
        connection.send(training())


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[Callable[[Run], Job]]:
    """The :data:`Engine` of this machine: processes with an equal share of PyTorch's threads."""
    threads = max(1, torch.get_num_threads() // jobs)
    yield lambda run: _ProcessJob(RemoteTraining(run, os.getcwd(), threads))


@contextlib.contextmanager
def signals_held_back() -> Iterator[None]:
    """A process that is started meanwhile has them blocked from its first moment on."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    # Else it is started with the first process, which unblocks the signals.
    resource_tracker.ensure_running()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


class RunInHand:
    """A run that was given to an engine."""

    def __init__(self, run: Run, submit: Callable[[Run], Job]) -> None:
        self.run = run
        self._trains = False
        self._looked = 0.0
        run.folder.mkdir(parents=True, exist_ok=True)
        self._tidy()
        self._job = submit(run)

    def look(self, advance: Advance) -> Report | None:
        """What ended it, or None; ``advance`` is told how far it is. Looks now and then only."""
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return None
        self._looked = time.monotonic()
        if self._job.done():
            self._tidy()
            try:
                return self._job.result()
            except Exception as error:
                message = f"{self.run.name}: its job failed: {reason_of(error)}{TO_CONTINUE}"
                return Failure(message, traceback.format_exc())
        with contextlib.suppress(OSError, ValueError):
            done, total = json.loads((self.run.folder / PROGRESS).read_text())
            self._trains = True
            advance(self.run, done, total)
        return None

    def stop(self, number: int) -> bool:
        """Have it save its checkpoint and end, as if this signal had come to it; whether it will.

        What does not train yet is killed: it has nothing to save, and may be importing.
        """
        if self._trains and self._leave(number):
            return True
        self.kill()
        return False

    def kill(self) -> None:
        """End it at once."""
        self._leave(signal.SIGKILL)
        self._job.cancel()

    def _leave(self, number: int) -> bool:
        """Leave a signal for it; False where that cannot be written, as on a full disk."""
        try:
            write_atomically(self.run.folder / STOP, str(int(number)).encode(), durable=False)
        except OSError:
            return False
        return True

    def _tidy(self) -> None:
        for name in (PROGRESS, STOP):
            (self.run.folder / name).unlink(missing_ok=True)


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
    in_hand: list[RunInHand] = []
    last: list[Report] = []
    with engine(jobs) as submit, StopSignals() as signals, contextlib.ExitStack() as at_last:
        at_last.callback(_kill_all, in_hand)
        try:
            while (waiting or in_hand) and not signals.number:
                while waiting and len(in_hand) < jobs:
                    in_hand.append(RunInHand(waiting.popleft(), submit))
                for run, report in _reports(in_hand, advance):
                    if isinstance(report, Finished):
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
            _stop_all(in_hand, signals)
            raise
        if len(outcomes) < len(runs):
            raise _interruption(signals, last + _stop_all(in_hand, signals))
    return in_order()


def _reports(in_hand: list[RunInHand], advance: Advance) -> Iterator[tuple[Run, Report]]:
    """New reports with their runs, which are no longer in hand then."""
    time.sleep(_WAIT_S)
    for each in list(in_hand):
        if report := each.look(advance):
            in_hand.remove(each)
            yield each.run, report


def _stop_all(in_hand: list[RunInHand], signals: StopSignals) -> list[Report]:
    """Have all trainings save their checkpoints and end; returns what they said at last."""
    in_hand[:] = [each for each in in_hand if each.stop(signals.number)]
    last: list[Report] = []
    while in_hand and not signals.at_once:
        last += [report for _, report in _reports(in_hand, lambda run, done, total: None)]
    return last


def _kill_all(in_hand: list[RunInHand]) -> None:
    for each in in_hand:
        each.kill()


def _interruption(signals: StopSignals, last: Sequence[Report]) -> TrainingInterrupted:
    if signals.at_once:
        return TrainingInterrupted(f"interrupted at once, without new checkpoints{TO_CONTINUE}")
    lines = [str(report) for report in last if isinstance(report, TrainingInterrupted)]
    lines += [report.summary for report in last if isinstance(report, Failure)]
    lines = [line.removesuffix(TO_CONTINUE) for line in lines]
    kind = TrainingPreempted if signals.number == signal.SIGTERM else TrainingInterrupted
    return kind("\n".join(lines or [SIGNAL_NAMES[signals.number]]) + TO_CONTINUE)
