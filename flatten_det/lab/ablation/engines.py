"""Engines that train the runs of an ablation on other machines: Ray, and Slurm by submitit.

They start a run and bring its outcome. While it trains, this command and the run talk by files in the run's
folder, which both see: the run says how far it is in one, and the command has it stop by the other, as what
the engines have for that need not leave a training the time to save.
"""

import contextlib
import functools
import json
import math
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ...errors import UserError, reason_of
from ...files.atomic import write_atomically
from ...train.stop import TrainingPreempted
from .grid import Run
from .jobs import (
    SIGNALS,
    Engine,
    Failure,
    Progress,
    Report,
    Worker,
    prepare_process,
    signals_held_back,
    train_and_report,
)
from .run import TO_CONTINUE

PROGRESS, STOP = "progress.json", "stop"
_LOOK_EVERY_S = 1.0
_PATIENCE_S = 10
# Each time it is queued again there is a checkpoint more: no number of times is too much.
_REQUEUES = 1000
_PREEMPTION = getattr(signal, "SIGUSR1", None)  # None on Windows


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
        ignored = {n: signal.signal(n, signal.SIG_IGN) for n in SIGNALS if n != _PREEMPTION}
        ended = threading.Event()
        threading.Thread(target=self._obey, args=(ended,), daemon=True).start()
        try:
            prepare_process(self.threads)
            report = train_and_report(self.run, self._tell, _LOOK_EVERY_S)
        finally:
            ended.set()
            for number, handler in ignored.items():
                signal.signal(number, handler)
        if isinstance(report, TrainingPreempted) and report.number == _PREEMPTION:
            # Saved: now submitit has the job queued again, and Ray starts a process that died again.
            signal.raise_signal(_PREEMPTION)
        return report

    def checkpoint(self) -> Any:
        """What submitit queues after a pre-emption."""
        return import_module("submitit.helpers").DelayedSubmission(self)

    def _tell(self, progress: Progress) -> None:
        content = json.dumps([progress.done, progress.total]).encode()
        write_atomically(self.run.folder / PROGRESS, content, durable=False)

    def _obey(self, ended: threading.Event) -> None:
        """Send this process the signal that the command left, until it has ended the training."""
        while not ended.wait(_LOOK_EVERY_S):
            with contextlib.suppress(OSError, ValueError):
                os.kill(os.getpid(), int((self.run.folder / STOP).read_text()))


class Job(Protocol):
    """A training that was given to an engine."""

    def done(self) -> bool:
        """Whether :meth:`result` need not wait."""

    def result(self) -> Report:
        """What ended the training; any exception if the engine could not bring it to that."""

    def cancel(self) -> None:
        """End it, or have it not begin, without waiting for that."""


class RemoteWorker(Worker):
    """Gives runs to an engine by a function that returns their jobs."""

    connection = None

    def __init__(self, submit: Callable[[Run], Job]) -> None:
        self.run = None
        self._submit = submit
        self._trains = False
        self._looked = 0.0

    def give(self, run: Run | None) -> None:
        if run is None:
            return
        run.folder.mkdir(parents=True, exist_ok=True)
        _tidy(run)
        self._trains, self._job = False, self._submit(run)
        self.run = run

    def receive(self) -> Report | None:
        if time.monotonic() - self._looked < _LOOK_EVERY_S:
            return None
        self._looked = time.monotonic()
        if self._job.done():
            run, self.run = self.run, None
            _tidy(run)
            try:
                return self._job.result()
            except Exception as error:
                message = f"{run.name}: its job failed: {reason_of(error)}{TO_CONTINUE}"
                return Failure(message, traceback.format_exc())
        with contextlib.suppress(OSError, ValueError):
            progress = Progress(*json.loads((self.run.folder / PROGRESS).read_text()))
            self._trains = True
            return progress
        return None

    def stop(self, number: int) -> None:
        if not self._trains:
            self.kill()
        elif self.run:
            self._leave(number)

    def kill(self) -> None:
        if self.run:
            self._leave(signal.SIGKILL)
            self._job.cancel()
            self.run = None

    def _leave(self, number: int) -> None:
        write_atomically(self.run.folder / STOP, str(int(number)).encode())

    def wait(self) -> None:
        pass


def _tidy(run: Run) -> None:
    for name in (PROGRESS, STOP):
        (run.folder / name).unlink(missing_ok=True)


def _package(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--engine {name} needs the package {error.name}: pip install 'flatten-det[{name}]'"
        ) from error


@contextlib.contextmanager
def _blame_options(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise UserError(f"--engine-options: {' '.join(str(error).split())}") from error


def _check_address(address: str) -> None:
    """UserError if there is nobody at a cluster's address, which Ray itself tries for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
        except OSError as error:
            raise UserError(
                f"RAY_ADDRESS={address}: no cluster of Ray answers there ({error})"
            ) from error


@dataclass(frozen=True)
class _RayJob:
    ray: ModuleType
    ref: Any

    def done(self) -> bool:
        return bool(self.ray.wait([self.ref], timeout=0)[0])

    def result(self) -> Report:
        return self.ray.get(self.ref)

    def cancel(self) -> None:
        self.ray.cancel(self.ref, force=True)


@contextlib.contextmanager
def on_ray(options: Mapping[str, Any], out: Path, jobs: int) -> Iterator[Callable[[], Worker]]:
    """An :data:`~.jobs.Engine` whose runs are tasks of Ray, on the cluster of RAY_ADDRESS or on this machine.

    A task has a GPU if there are any, and an equal share of a machine's cores, unless ``options`` of
    ``ray.remote`` say otherwise.
    """
    ray = _package("ray")
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(log_to_driver=False)
    try:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        machines = [m for m in machines if "GPU" in m] or machines
        each = math.ceil(jobs / len(machines))
        cores = min(m.get("CPU", 0) // m.get("GPU", each) for m in machines)
        resources = {"num_cpus": max(1, int(cores)), "num_gpus": int("GPU" in machines[0])}
        resources.update(options)
        with _blame_options(ValueError, TypeError):
            task = ray.remote(RemoteTraining.__call__).options(**resources)
        threads = max(1, int(resources["num_cpus"]))
        here = str(Path.cwd())
        yield lambda: RemoteWorker(
            lambda run: _RayJob(ray, task.remote(RemoteTraining(run, here, threads)))
        )
    finally:
        ray.shutdown()


@contextlib.contextmanager
def on_submitit(options: Mapping[str, Any], out: Path, jobs: int) -> Iterator[Callable[[], Worker]]:
    """An :data:`~.jobs.Engine` whose runs are jobs of Slurm, or of another ``cluster`` that submitit knows.

    The other ``options`` are those of submitit's ``AutoExecutor.update_parameters``. A job that gets
    SIGUSR1, before its time limit or as it is pre-empted, is queued again.
    """
    # What our trainings save at. Read as submitit is imported, here and, by the environment, in the jobs.
    os.environ["SUBMITIT_PREEMPT_SIGNAL"] = "USR1"
    submitit = _package("submitit")
    options = {"timeout_min": 24 * 60, **options}
    cluster = options.pop("cluster", "slurm")
    with _blame_options(RuntimeError, ValueError, NameError, AssertionError):
        executor = submitit.AutoExecutor(
            out.absolute() / "jobs",
            cluster=cluster,
            **{f"{name}_max_num_timeout": _REQUEUES for name in ("slurm", "local")},
        )
        executor.update_parameters(**options)

    def submit(run: Run) -> Job:
        training = RemoteTraining(run, str(Path.cwd()), None)
        executor.update_parameters(name=run.cfg.experiment_name)
        try:
            # Those of a local cluster share this terminal, whose Ctrl-C is for this process.
            with signals_held_back():
                return executor.submit(training)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"{run.name}: Slurm takes no job: {reason_of(error)}") from error

    yield lambda: RemoteWorker(submit)


_ENGINES = {"ray": on_ray, "submitit": on_submitit}
ENGINES = ("local", *_ENGINES)


def make_engine(name: str, options: Mapping[str, Any], out: Path) -> Engine | None:
    """The engine of a name; None for ``local``, which :func:`~.jobs.finish_all` has itself.

    Args:
        name: among :data:`ENGINES`.
        options: the engine's own, see its function.
        out: folder of the ablation, which all machines see.
    """
    return functools.partial(_ENGINES[name], options, out) if name in _ENGINES else None
