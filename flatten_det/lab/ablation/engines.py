"""Engines that train the runs of an ablation on other machines: Ray, and Slurm by submitit."""

import contextlib
import functools
import math
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import UserError, reason_of
from .grid import Run
from .jobs import Engine, Job, RemoteTraining, Report, signals_held_back

_PATIENCE_S = 10
# Each time it is queued again there is a checkpoint more: no number of times is too much.
_REQUEUES = 1000


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
def on_ray(options: Mapping[str, Any], out: Path, jobs: int) -> Iterator[Callable[[Run], Job]]:
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
        yield lambda run: _RayJob(ray, task.remote(RemoteTraining(run, here, threads)))
    finally:
        ray.shutdown()


@contextlib.contextmanager
def on_submitit(options: Mapping[str, Any], out: Path, jobs: int) -> Iterator[Callable[[Run], Job]]:
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

    yield submit


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
