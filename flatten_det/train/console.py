"""What a person sees of a run: what it does on what data, its progress; of a training, tables of metrics."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from numbers import Real
from typing import Any

import torch
from mmengine.dist import is_main_process, master_only
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import IterBasedTrainLoop, Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch.utils.data import DataLoader

from ..cli import as_shown, make_console, say
from ..compat.patches import loggers_print_by
from ..config import pretrained_weights
from ..files.checkpoints import unwrapped
from .run import log_file, places_of_logs, summary

_LOWER_IS_BETTER = ("loss", "error")
# What the frameworks say of each other's calls.
_OF_NO_USE = (
    "will be deprecated",
    "is the alias of",
    "The prefix is not set in metric",
    "requires_grad=False",
)


@contextlib.contextmanager
def short_console(config: str, kind: "type[ConsoleHook] | None" = None) -> Iterator[list[Hook]]:
    """Keep a run's log and what libraries print in its log file, and show a person what matters.

    Yields the hooks that the run needs for it. ``config`` is what it is called; ``kind`` what shows it, a
    :class:`TrainConsoleHook` by default.
    """
    kind = kind or TrainConsoleHook
    console, printed = make_console(), _PrintedLines()
    console.file = sys.stdout  # As it is now.
    with (
        loggers_print_by(_ConsoleHandler(console, kind.shows_tables)),
        contextlib.redirect_stdout(printed),
        kind(config, console, printed) as hook,
    ):
        yield [hook]


class _PrintedLines(io.TextIOBase):
    """A standard output whose lines go to a logger; those before there is one wait for it."""

    def __init__(self) -> None:
        self._text, self._logger = "", None

    def write(self, text: str) -> int:
        """Log whole lines."""
        self._text += text
        if self._logger is not None:
            *lines, self._text = self._text.split("\n")
            for line in filter(str.strip, lines):
                self._logger.info(line)
        return len(text)

    def use(self, logger: logging.Logger) -> None:
        """Log to ``logger`` from now on."""
        self._logger = logger
        self.write("")


class _ConsoleHandler(logging.Handler):
    """Warnings and errors, and tables if asked to, between the lines of the progress."""

    def __init__(self, console: Console, shows_tables: bool) -> None:
        super().__init__(logging.INFO if shows_tables else logging.WARNING)
        self._console, self._heading = console, ""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one; of other ranks than the first, errors alone."""
        message = record.getMessage()
        if record.levelno < logging.WARNING:
            self._emit_table(message.strip())
            return
        of_no_use = any(words in message for words in _OF_NO_USE) or not is_main_process()
        if record.levelno >= logging.ERROR or not of_no_use:
            say(self._console, f"{record.levelname.lower()}: {message}")

    def _emit_table(self, message: str) -> None:
        """Print what has a frame, as metrics draw it around the numbers of all classes."""
        if message.startswith("Evaluating ") or message.endswith(":"):
            self._heading = message
        elif message.endswith("-+") and is_main_process():
            is_headless = message.startswith("+-")
            say(self._console, *([self._heading] if is_headless and self._heading else []), message)


class ConsoleHook(Hook):
    """Prints what a run is, and its progress.

    On a terminal the progress is one line that is written anew; elsewhere it is one line for each interval
    of the run's LoggerHook. It is a context manager, which ends the line when something fails.
    """

    priority = "LOWEST"
    shows_tables = False  # Those of the log, too.

    def __init__(self, config: str, console: Console, printed: _PrintedLines) -> None:
        self._config, self._console, self._printed = config, console, printed
        text = TextColumn("{task.fields[numbers]}")
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), text,
            console=console, transient=True, redirect_stdout=False,
        )  # fmt: skip
        self._interval = 50

    def __enter__(self) -> "ConsoleHook":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        """Leave the line of the progress, if there is one: stopping it prints one where there is not."""
        if self._progress.live.is_started:
            self._progress.stop()

    def before_run(self, runner: Runner) -> None:
        """Send what is printed to the run's log from now on."""
        self._printed.use(runner.logger)

    def _introduce(self, runner: Runner, facts: dict[str, str], work: str, total: int) -> None:
        """Say what the run is, and begin to show how much of ``total`` is done."""
        self._interval = next((h.interval for h in runner.hooks if isinstance(h, LoggerHook)), 50)
        width = max(10, *map(len, facts))
        say(self._console, *(f"{name:<{width}} {fact}" for name, fact in facts.items()))
        if self._console.is_terminal:
            self._task = self._progress.add_task(work, total=total, numbers="")
            self._progress.start()

    def _show(
        self, iteration: int, is_last: bool, done: int, total: int, numbers: list[str]
    ) -> None:
        """Show how much is done after so many iterations."""
        if self._console.is_terminal:
            self._progress.update(self._task, completed=done, numbers="  ".join(numbers))
        elif iteration % self._interval == 0 or is_last:
            say(self._console, "  ".join([f"[{done:>{len(str(total))}}/{total}]", *numbers]))


class TrainConsoleHook(ConsoleHook):
    """Prints a summary before a training, its progress, and a table after each validation."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_introduced = False

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Print what is trained on what."""
        self._begin(runner)

    @master_only
    def before_val(self, runner: Runner) -> None:
        """As before the training: one that is resumed makes up for a missed validation first."""
        self._begin(runner)

    def _begin(self, runner: Runner) -> None:
        if not self._is_introduced:
            self._is_introduced = True
            facts = describe_training(runner, self._config)
            self._introduce(runner, facts, "train", runner.max_iters)

    @master_only
    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Show loss, speed, remaining time and memory."""
        done, total = runner.iter + 1, runner.max_iters
        self._show(done, done == total, done, total, _numbers(runner, done))

    @master_only
    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Show how much of a validation is done."""
        if self._console.is_terminal:
            batches = len(runner.val_dataloader)
            self._progress.update(self._task, numbers=f"validating, {batch_idx + 1}/{batches}")

    @master_only
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Print the metrics, each with its best value so far."""
        rows = [(k, v) for k, v in (metrics or {}).items() if isinstance(v, Real) and v >= 0]
        if rows:
            when = f"{_position(runner)} of {_length(runner)}"
            say(self._console, f"validation, {when}")
            table = Table("metric", "value", "best")
            for name, value in rows:
                best = _best(runner, name, value)
                table.add_row(name, f"{value:.4g}", "*" if value == best else f"{best:.4g}")
            self._console.print(table)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """End the line and name the results."""
        self._end()
        say(self._console, *summary(runner).split("\n"))


def _is_by_iterations(runner: Runner) -> bool:
    return isinstance(runner.train_loop, IterBasedTrainLoop)


def _position(runner: Runner) -> str:
    """What is done: the loops have counted when they validate."""
    return f"iteration {runner.iter}" if _is_by_iterations(runner) else f"epoch {runner.epoch}"


def _length(runner: Runner) -> int:
    return runner.max_iters if _is_by_iterations(runner) else runner.max_epochs


def _best(runner: Runner, name: str, value: float) -> float:
    """Of all validations, those before an interruption too, which the message hub keeps."""
    scalars = runner.message_hub.log_scalars
    earlier = scalars[f"val/{name}"].data[0].tolist() if f"val/{name}" in scalars else []
    choose = min if any(word in name.lower() for word in _LOWER_IS_BETTER) else max
    return choose([*earlier, value])


def _numbers(runner: Runner, done: int) -> list[str]:
    """Loss, learning rate, speed, remaining time and memory, each as far as it is known."""
    scalars, texts = runner.message_hub.log_scalars, []
    if "train/loss" in scalars:
        texts.append(f"loss {scalars['train/loss'].mean(10):.4g}")
    if "train/lr" in scalars:
        texts.append(f"lr {scalars['train/lr'].current():.2g}")
    if "train/time" in scalars:
        seconds = scalars["train/time"].mean(100)
        left = timedelta(seconds=round(seconds * (runner.max_iters - done)))
        texts.append(f"{seconds:.3g} s/iter  eta {left}")
    if torch.cuda.is_available():
        texts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    return texts


def describe_training(runner: Runner, config: str) -> dict[str, str]:
    """What is trained, on what, how long and where, in about ten facts by name."""
    optimizer = getattr(runner.optim_wrapper, "optimizer", None)
    rates = (
        [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if optimizer
        else []
    )
    facts = {
        "config": config,
        "model": describe_model(runner),
        "weights": _weights(runner),
        "train": describe_data(runner.train_loop.dataloader, runner.world_size),
        "validate": describe_data(runner.val_loop.dataloader, runner.world_size)
        + f", every {runner.train_loop.val_interval} "
        + ("iterations" if _is_by_iterations(runner) else "epochs")
        if runner.val_loop
        else "no",
        "schedule": f"{runner.max_iters} iterations"
        + ("" if _is_by_iterations(runner) else f" in {runner.max_epochs} epochs")
        + (f", {type(optimizer).__name__}, learning rate {max(rates):.2g}" if rates else ""),
        "precision": _precision(runner),
        "device": describe_device(runner),
        "log": as_shown(log_file(runner)),
        **places_of_logs(runner),
    }
    if runner.iter:
        facts["resumed"] = f"after iteration {runner.iter}"
    return facts


def describe_model(runner: Runner) -> str:
    """The model's and its backbone's class, and how many parameters it has."""
    model = unwrapped(runner.model)
    parameters = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    # PyTorch's FSDP2 gives a model a class of its own.
    kind, backbone = (
        type(part).__name__.removeprefix("FSDP")
        for part in (model, getattr(model, "backbone", model))
    )
    return f"{kind} with {backbone}, {parameters / 1e6:.1f} M parameters" + (
        f", {frozen / 1e6:.1f} M of them frozen" if frozen else ""
    )


def _weights(runner: Runner) -> str:
    if runner.cfg.get("load_from"):
        return str(runner.cfg.load_from)
    files = pretrained_weights(runner.cfg)
    return f"{', '.join(files)} (backbone)" if files else "none, from scratch"


def describe_data(loader: DataLoader, world_size: int) -> str:
    """The data set of a loader, how many images and classes it has, and the batches."""
    dataset = loader.dataset
    classes = getattr(dataset, "metainfo", {}).get("classes") or ()
    each = f"{world_size} x " if world_size > 1 else ""
    return (
        f"{type(dataset).__name__}: {len(dataset):,} images, {len(classes)} classes, "
        f"batches of {each}{loader.batch_size or loader.batch_sampler.batch_size}"
    )


def _precision(runner: Runner) -> str:
    wrapper = runner.optim_wrapper
    if not hasattr(wrapper, "cast_dtype"):
        return "fp32"
    device = next(runner.model.parameters()).device.type
    dtype = wrapper.cast_dtype or torch.get_autocast_dtype(device)
    return f"mixed, {dtype}".replace("torch.", "")


def describe_device(runner: Runner) -> str:
    """What the model runs on."""
    device = next(runner.model.parameters()).device
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{device.type}, {torch.get_num_threads()} threads"
    )
    return f"{runner.world_size} x {name}" if runner.world_size > 1 else name
