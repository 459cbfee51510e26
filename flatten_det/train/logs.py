"""Logs of a training in TensorBoard, Weights & Biases and MLflow: mmengine's backends, made fit for it."""

import contextlib
import hashlib
import importlib.util
import logging
import math
import os
import re
import secrets
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from numbers import Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine import visualization
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.utils import scandir
from mmengine.visualization.vis_backend import BaseVisBackend
from packaging.requirements import Requirement

from ..cli import as_shown
from ..config import IN_CHECKOUT, type_name
from ..errors import UserError, in_one_line, warn_once
from .stop import TrainingPreempted

# What the runs of all work dirs are kept in, unless the environment names another.
_PROJECT = "flatten-det"
# Of pictures, in pixels: they are looked at in a browser, and kept for each validation.
_MAX_SIDE = 1024
# In characters, as old servers of MLflow have it; all of the config is in a file beside them.
_LONGEST_PARAMETER = 500


class TrainingLog(BaseVisBackend):
    """What the backends have in common: opened when the training begins, iterations as the one axis.

    A run has the name that :class:`LogsHook` gives it, also after ``--resume``. Scalars have mmengine's
    names, as in ``scalars.json``, but the times of a validation, which mmengine mixes with those of
    training.

    Attributes:
        place: where the log is seen: a folder, an address or a command.
    """

    place = ""
    _hook: "LogsHook | None" = None
    _is_open = False
    _config: Config | None = None

    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Keep it until the training begins: what fails before leaves no run."""
        self._config = config

    def begin(self, runner: Runner, hook: "LogsHook") -> None:
        """Open the log. A UserError if that fails."""
        self._hook = hook
        config = self._config or runner.cfg
        try:
            self._open(runner, hook.run)
            self._is_open = True
            self._write_config(config)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{type(self).__name__} cannot be opened: {_reason(error)}: correct its settings, or "
                "train without it"
            ) from error

    def add_scalar(self, name: str, value: Any, step: int = 0, **kwargs: Any) -> None:
        """As :meth:`add_scalars`."""
        self.add_scalars({name: value})

    def add_scalars(
        self, scalar_dict: dict, step: int = 0, file_path: str | None = None, **kwargs: Any
    ) -> None:
        """Write numbers at the training's iteration, whatever ``step`` counts: epochs, or batches."""
        if not self._is_open:
            return
        numbers = {}
        for name, value in scalar_dict.items():
            if isinstance(value, torch.Tensor | np.ndarray) and math.prod(value.shape) == 1:
                value = value.item()
            if isinstance(value, Real) and name not in ("iter", "step"):
                is_of_validation = self._hook.is_validating and name in ("time", "data_time")
                numbers[f"val/{name}" if is_of_validation else name] = float(value)
        if numbers:
            self._write(numbers, self._hook.iteration)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Write an RGB picture at the training's iteration, shrunk if it is large."""
        if not self._is_open:
            return
        factor = _MAX_SIDE / max(image.shape[:2])
        if factor < 1:
            size = [max(1, round(factor * side)) for side in image.shape[1::-1]]
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        self._write_picture(_plain(name), np.ascontiguousarray(image), self._hook.iteration)

    def close(self) -> None:
        """End a run that went well."""
        self.end(None)

    def end(self, error: BaseException | None) -> None:
        """End the run with the state that follows from what stopped the training, if anything did."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            self._end(error)
        except Exception as reason:
            # The training is done all the same, or something else is to be told of it.
            warn_once(f"{type(self).__name__} was not ended: {_reason(reason)}")

    def _open(self, runner: Runner, run: str) -> None:
        raise NotImplementedError

    def _write_config(self, config: Config) -> None:
        raise NotImplementedError

    def _write(self, numbers: dict[str, float], iteration: int) -> None:
        raise NotImplementedError

    def _write_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        raise NotImplementedError

    def _end(self, error: BaseException | None) -> None:
        raise NotImplementedError


class TensorboardVisBackend(TrainingLog, visualization.TensorboardVisBackend):
    """mmengine's, in one folder of the work dir for all starts of a training."""

    def _open(self, runner: Runner, run: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if Path(self._save_dir) == Path(runner.log_dir, "vis_data"):  # Not the config's own.
            self._save_dir = str(Path(runner.work_dir, "tensorboard", run))
        # What an earlier start wrote after its last checkpoint is not shown.
        purge = runner.iter + 1 if runner.iter else None
        self._tensorboard = SummaryWriter(self._save_dir, purge_step=purge, flush_secs=30)
        self._env_initialized = True
        self.place = f"tensorboard --logdir {_in_shell(Path(self._save_dir).parent)}"

    def _write_config(self, config: Config) -> None:
        # As code; else it is shown as Markdown.
        lines = config.pretty_text.splitlines()
        self._tensorboard.add_text("config", "\n".join(f"    {line}" for line in lines))

    def _write(self, numbers: dict[str, float], iteration: int) -> None:
        for name, value in numbers.items():
            self._tensorboard.add_scalar(name, value, iteration)

    def _write_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        self._tensorboard.add_image(name, picture, iteration, dataformats="HWC")

    def _end(self, error: BaseException | None) -> None:
        self._tensorboard.close()


class WandbVisBackend(TrainingLog, visualization.WandbVisBackend):
    """mmengine's, without questions, and offline where there is no API key or no network.

    mmengine's own counts calls instead of iterations, uploads every Python file below the current folder
    (here only with ``log_code_name``), begins a new run after ``--resume``, and one that failed has no state.
    """

    def _open(self, runner: Runner, run: str) -> None:
        import wandb

        name = Path(runner.work_dir).resolve().name
        identity = hashlib.sha256(f"{name}-{run}".encode()).hexdigest()[:12]
        settings = {
            "id": identity,
            "name": name,
            "dir": runner.work_dir,
            # Also offline, where the parts of a run lie side by side: wandb sync puts them together by it.
            "resume": "allow",
        }
        if not os.environ.get("WANDB_PROJECT"):
            settings["project"] = _PROJECT
        self._init_kwargs = {**settings, **(self._init_kwargs or {})}
        mode = self._init_kwargs.get("mode") or os.environ.get("WANDB_MODE") or "online"
        if mode == "online" and not wandb.login(prompt=False, verify=False):
            warn_once("no API key of Weights & Biases (wandb login): its log stays in the work dir")
            mode = "offline"
        try:
            self._start(wandb, mode)
        except wandb.errors.AuthenticationError:
            raise
        except wandb.errors.CommError as error:
            reason = _reason(error)
            warn_once(f"Weights & Biases is not reached: its log stays in the work dir: {reason}")
            wandb.teardown()  # Else the id is in use.
            self._start(wandb, "offline")
        # Not wandb's own count of calls; and a step of the past, as after --resume, would be left out.
        wandb.define_metric("iter", hidden=True)
        wandb.define_metric("*", step_metric="iter")
        if wandb.run.offline:
            folder = _in_shell(Path(wandb.run.dir).parent.parent)
            self.place = f"wandb sync {folder}/offline-run-*-{wandb.run.id}"
        else:
            self.place = wandb.run.url or ""

    def _start(self, wandb: Any, mode: str) -> None:
        settings = {
            "console": "off",  # Our own output, which is in the log file.
            "quiet": True,
            "silent": mode == "offline",  # It would praise its website.
            # No wait without end for a network.
            "init_timeout": 30,
            "finish_timeout": 300,
        }
        self._init_kwargs = {
            "settings": wandb.Settings(**settings),
            **self._init_kwargs,
            "mode": mode,
        }
        super()._init_env()
        self._env_initialized = True

    def _write_config(self, config: Config) -> None:
        self._wandb.config.update(config.to_dict(), allow_val_change=True)
        if self._log_code_name:
            self._wandb.run.log_code(name=self._log_code_name)

    def _write(self, numbers: dict[str, float], iteration: int) -> None:
        self._wandb.log({**numbers, "iter": iteration})

    def _write_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        self._wandb.log({name: self._wandb.Image(picture), "iter": iteration})

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, TrainingPreempted):
            self._wandb.run.mark_preempting()
        # As wandb itself ends a run after Ctrl-C, which is shown as killed.
        code = 255 if isinstance(error, KeyboardInterrupt) else int(error is not None)
        self._wandb.finish(exit_code=code)


class MLflowVisBackend(TrainingLog, visualization.MLflowVisBackend):
    """mmengine's, in a SQLite file of the work dir, or where ``MLFLOW_TRACKING_URI`` says.

    mmengine's own knows the server of the config alone, writes into a folder otherwise, which MLflow takes no
    more, stops at pictures without a suffix, and loses all scalars of an iteration with one odd name.
    """

    _TAG = "flatten_det.run"
    _MOST_FAILURES = 3  # in a row
    _failures = 0

    def _open(self, runner: Runner, run: str) -> None:
        import mlflow

        # Lines about the tables of a new database.
        for logger in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(logger).setLevel(logging.WARNING)

        folder = Path(runner.work_dir, "mlflow").resolve()
        uri = self._tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        place, artifacts = uri, self._artifact_location
        if uri is None:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{(folder / 'mlflow.db').as_posix()}"
            artifacts = artifacts or (folder / "artifacts").as_uri()
            # Not part of the packages that are needed to write a log.
            start = "mlflow ui" if importlib.util.find_spec("flask") else "uvx mlflow ui"
            place = f"{start} --backend-store-uri sqlite:///{_in_shell(folder / 'mlflow.db')}"
        # Each request would be repeated for minutes, and the address printed with its password.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        mlflow.set_tracking_uri(uri)
        name = self._exp_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        if mlflow.get_experiment_by_name(name) is None:
            mlflow.create_experiment(name, artifact_location=artifacts)
        experiment = mlflow.set_experiment(name)
        tag = _plain(f"{Path(runner.work_dir).resolve().name}-{run}")
        found = mlflow.search_runs(
            [experiment.experiment_id], f"tags.`{self._TAG}` = '{tag}'", output_format="list"
        )
        mlflow.start_run(
            run_id=found[0].info.run_id if found else None,
            run_name=self._run_name or folder.parent.name,
            tags={self._TAG: tag, **(self._tags or {})},
        )
        self._mlflow, self._env_initialized = mlflow, True
        self.place = _without_password(place)

    def _write_config(self, config: Config) -> None:
        with self._tolerant("config"):
            self._mlflow.log_text(config.pretty_text, "config.py")
            keys = self._tracked_config_keys
            tracked = {key: config[key] for key in keys} if keys else config.to_dict()
            parameters = {**self._flatten(tracked), **(self._params or {})}
            # Those that a resumed run has changed would be refused.
            known = self._mlflow.get_run(self._mlflow.active_run().info.run_id).data.params
            self._mlflow.log_params(
                {
                    name: str(value)[:_LONGEST_PARAMETER]
                    for key, value in parameters.items()
                    if (name := _plain(key)) not in known
                }
            )

    def _write(self, numbers: dict[str, float], iteration: int) -> None:
        if self._failures < self._MOST_FAILURES:
            with self._tolerant("scalars"):
                self._mlflow.log_metrics({_plain(k): v for k, v in numbers.items()}, iteration)

    def _write_picture(self, name: str, picture: np.ndarray, iteration: int) -> None:
        if self._failures < self._MOST_FAILURES:
            with self._tolerant(f"picture {name}"):
                self._mlflow.log_image(picture, key=name, step=iteration, synchronous=True)

    @contextlib.contextmanager
    def _tolerant(self, what: str) -> Iterator[None]:
        """A server that fails is no reason to stop a training, nor to wait for it again and again."""
        try:
            yield
            self._failures = 0
        except Exception as error:  # Of the network, of a database, of a store of files.
            self._failures += 1
            rest = ", nor what follows" if self._failures == self._MOST_FAILURES else ""
            place = f"{what} of iteration {self._hook.iteration}"
            message = f"{place} not in MLflow{rest}: {_reason(error)}"
            print_log(message, "current", logging.WARNING)

    def _end(self, error: BaseException | None) -> None:
        # Of this start: mmengine's own takes the whole work dir, its own files among them.
        folder = Path(self._save_dir).parent
        with self._tolerant("log files"):
            for name in scandir(str(folder), self._artifact_suffix, recursive=True):
                self._mlflow.log_artifact(str(folder / name), str(Path(folder.name, name).parent))
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with self._tolerant("end"):
            self._mlflow.end_run("FINISHED" if error is None else status)


LOGS: dict[str, type[TrainingLog]] = {
    "tensorboard": TensorboardVisBackend,
    "wandb": WandbVisBackend,
    "mlflow": MLflowVisBackend,
}


def open_logs(runner: Runner) -> list[TrainingLog]:
    """Those that the config of a training, or ``--log``, asks for."""
    return [log for log in runner.visualizer._vis_backends.values() if isinstance(log, TrainingLog)]


def _plain(name: str) -> str:
    """A name of characters that all of the three take."""
    return re.sub(r"[^\w./ :-]", "_", name, flags=re.ASCII)


def _in_shell(path: Path) -> str:
    """As it is written there, for the current folder."""
    return shlex.quote(as_shown(path.resolve()))


def _reason(error: BaseException) -> str:
    return _without_password(in_one_line(error))[:400]


def _without_password(text: str) -> str:
    """The text with addresses as they may be shown."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _is_installed(extra: str) -> bool:
    """Whether what pyproject.toml names for this extra is there, in those versions."""
    for text in metadata.requires("flatten-det") or ():
        required = Requirement(text)
        if required.marker and required.marker.evaluate({"extra": extra}):
            try:
                there = metadata.version(required.name)
            except metadata.PackageNotFoundError:
                return False
            if not required.specifier.contains(there, prereleases=True):
                return False
    return True


def how_to_install(names: Iterable[str]) -> str:
    """The message for logs whose packages are not installed."""
    names = list(names)
    if IN_CHECKOUT:
        command = "uv sync " + " ".join(f"--extra {name}" for name in names)
    else:
        command = f'pip install "flatten-det[{",".join(names)}]"'
    return f"the log of {' and '.join(names)} needs packages that are not installed, or too old: {command}"


class LogsHook(Hook):
    """Opens a training's logs, tells them the iteration, and ends them when the training ends, however.

    A context manager around the training. Its logs are added to the runner, not to the config, as that is
    stored beside the results, for other trainings and tests.

    Args:
        cfg: the config, which may have backends of its own.
        names: of :data:`LOGS`, to be written besides; one that the config has is as there.

    Raises:
        UserError: a package is not installed.
    """

    # Before the other hooks write anything, such as a missed validation's.
    priority = "HIGHEST"

    def __init__(self, cfg: Config, names: Sequence[str] = ()) -> None:
        self._names = list(dict.fromkeys(names))
        self._open: list[TrainingLog] = []
        self.iteration, self.is_validating, self.run = 0, False, ""
        backends = (cfg.get("visualizer") or {}).get("vis_backends") or []
        of_config = {type_name(b): b for b in backends if isinstance(b, Mapping)}
        wanted = []
        for name, log in LOGS.items():
            if log.__name__ in of_config:
                # A class, as in pure-Python configs, would be mmengine's own.
                of_config[log.__name__]["type"] = log.__name__
            if log.__name__ in of_config or name in names:
                wanted.append(name)
        if missing := [name for name in wanted if not _is_installed(name)]:
            raise UserError(how_to_install(missing))

    def __enter__(self) -> "LogsHook":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        for log in self._open:
            log.end(error)

    def before_train(self, runner: Runner) -> None:
        """Open the logs, of the first rank alone; a resumed training's go on."""
        if not is_main_process():
            return
        self.iteration = runner.iter
        backends = runner.visualizer._vis_backends
        for name in self._names:
            kind = LOGS[name]
            if not any(type(b).__name__ == kind.__name__ for b in backends.values()):
                backends[kind.__name__] = kind(save_dir=str(Path(runner.log_dir, "vis_data")))
        logs = open_logs(runner)
        if logs:
            # Checkpoints keep it.
            known = runner.message_hub.runtime_info.get("run_of_logs")
            self.run = known or f"{runner.timestamp}-{secrets.token_hex(2)}"
            runner.message_hub.update_info("run_of_logs", self.run)
        for log in logs:
            self._open.append(log)
            log.begin(runner, self)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.iteration = runner.iter + 1

    def before_val(self, runner: Runner) -> None:
        self.iteration, self.is_validating = runner.iter, True

    def after_val(self, runner: Runner) -> None:
        self.is_validating = False
