"""Whether data or model limit a training: images per second of workers and of the step, and transforms."""

import contextlib
import io
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ...cli import say
from ...config import all_datasets, blame_config, build_dataloader
from ...data.loading import blame_annotation_files, check_images, transforms_of
from ...errors import UserError
from ...files.images import pixel_limit
from ...train.optimizer import use_amp_of_cpu
from ...train.run import use_our_components
from ..output import Shown, write_json
from .machine import busy_remark, describe_machine, device_name
from .report import JSON, show_tables, write_markdown
from .sources import build_whole, quiet_logs
from .timing import clock_of

REST = "index, checks and batches"
_SEED = 0
_PREFETCHED = 2  # batches, by each worker: torch's default
# What torch takes where there are workers only.
_OF_WORKERS = ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context")


@dataclass(frozen=True)
class Feeding:
    """What was measured of a config's training, by one process after the other.

    Attributes:
        data: images per second, of each round, by the number of workers; 0: in the process that trains.
        step: images per second of each training step, on real batches that are there already.
        transforms: seconds per image in one process, by name, and of the :data:`REST`.
        cores: of this machine.
    """

    data: dict[int, list[float]]
    step: list[float]
    transforms: dict[str, float]
    cores: int

    @property
    def verdict(self) -> str:
        """Which of the two limits, and how many workers are needed."""
        step = statistics.median(self.step)
        rates = {n: statistics.median(rounds) for n, rounds in self.data.items() if n}
        enough = next((n for n, rate in rates.items() if rate >= step), None)
        if enough is not None:
            return (
                f"The model limits: a step trains {step:.3g} images/s, and with --workers {enough} there "
                f"are {rates[enough]:.3g}."
            )
        most, fewest = max(rates, key=rates.__getitem__), min(rates)
        needed = math.ceil(step * fewest / rates[fewest])
        return (
            f"The data limit: a step trains {step:.3g} images/s, and with --workers {most} there are "
            f"{rates[most]:.3g}. It would take about {needed} workers for each process, at "
            f"{rates[fewest] / fewest:.3g} images/s each; this machine has {self.cores} cores."
        )

    def tables(self) -> Iterator[Shown]:
        """Title, columns and rows, for :func:`.report.make_table`."""
        step = statistics.median(self.step)
        rows = []
        for workers, rounds in self.data.items():
            rate = statistics.median(rounds)
            each = f"{rate / max(workers, 1):.3g}"
            spread = f"{min(rounds):.3g}-{max(rounds):.3g}"
            rows.append([str(workers), f"{rate:.3g}", spread, each, f"{rate / step:.2f}"])
        spread = f"{min(self.step):.3g}-{max(self.step):.3g}"
        rows.append(["training step", f"{step:.3g}", spread, "", "1.00"])
        names = ("workers", "images/s", "range", "per worker", "of the step's")
        yield "images per second", _columns(names), rows
        total = sum(self.transforms.values())
        rows = [
            [name, f"{seconds * 1e3:.3g}", f"{seconds / total:.0%}"]
            for name, seconds in sorted(self.transforms.items(), key=lambda item: -item[1])
        ]
        yield "an image in one process", _columns(("transform", "ms", "share")), rows


def _columns(names: Sequence[str]) -> dict[str, str]:
    return {name: "right" if number else "left" for number, name in enumerate(names)}


def measure_feeding(
    cfg: Config, workers: Sequence[int], rounds: int, device: torch.device
) -> Feeding:
    """Measure the data of a config's training with several numbers of workers, and its step.

    Weights are random. The transforms are those of the rounds without workers.

    Raises:
        UserError: the config has no training data or cannot be built, or its data cannot be read.
    """
    if not cfg.get("train_dataloader"):
        raise UserError(f"config file {cfg.filename} has no train_dataloader: give one that trains")
    scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet"))
    with scope, blame_config(cfg) as stage, blame_annotation_files(cfg), use_our_components():
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells of its index.
            loader = _build_loader(cfg, 0, cfg.train_dataloader.dataset)
        dataset = loader.dataset
        check_images(dataset, pixel_limit(cfg))  # As in a training.
        with _timed(dataset) as spent:
            measured = {0: _measure(loader, 0, rounds, spent.clear)}
        again = {"type": lambda: dataset}
        for count in sorted(set(workers) - {0}):
            measured[count] = _measure(_build_loader(cfg, count, again), count, rounds)
        # Infinite samplers, once left, give nothing more.
        step = _measure_step(cfg, _build_loader(cfg, 0, again), rounds, device)
        stage.has_begun = True
    images, seconds = map(sum, zip(*measured[0], strict=True))
    spent[REST] = seconds - sum(spent.values())
    return Feeding(
        {count: _rates(of_count) for count, of_count in measured.items()},
        _rates(step),
        {name: value / images for name, value in spent.items()},
        os.cpu_count() or 1,
    )


# Numbers of images and the seconds that they took, of each round.
_Rounds = list[tuple[int, float]]


def _rates(rounds: _Rounds) -> list[float]:
    return [images / seconds for images, seconds in rounds]


def _build_loader(cfg: Config, workers: int, dataset: dict[str, Any]) -> DataLoader:
    loader = {**cfg.train_dataloader, "num_workers": workers, "dataset": dataset}
    if not workers:
        loader = without_workers(loader)
    built = build_dataloader(Runner.build_dataloader, loader, seed=_SEED)
    built.collate_fn = partial(_counted, built.collate_fn)
    return built


def without_workers(loader: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a loader that loads in its own process."""
    kept = {name: value for name, value in loader.items() if name not in _OF_WORKERS}
    return kept | {"num_workers": 0}


def _counted(collate: Callable[[list], Any], items: list) -> tuple[int, Any]:
    return len(items), collate(items)


def _batches(loader: DataLoader) -> Iterator[tuple[int, Any]]:
    """Numbers of images and their batches, from one epoch to the next."""
    count = 1
    while count:
        count = 0
        for count, batch in enumerate(loader, 1):  # noqa: B007
            yield batch
    raise UserError("the training data give no batch: they have fewer images than a batch takes")


def _measure(
    loader: DataLoader, workers: int, rounds: int, begin: Callable[[], object] = lambda: None
) -> _Rounds:
    """Take batches: first what the workers have ready from their start, then, after ``begin``, the rounds."""
    batches, of_round = _batches(loader), 2 * max(workers, 1)
    for _ in islice(batches, workers * (_PREFETCHED + 1) + 1):
        pass
    begin()
    measured = []
    for _ in range(rounds):
        start = time.perf_counter()
        images = sum(count for count, _ in islice(batches, of_round))
        measured.append((images, time.perf_counter() - start))
    return measured


@contextlib.contextmanager
def _timed(dataset: Any) -> Iterator[Counter]:
    """Seconds spent in each transform, by name, within the block and this process."""
    spent: Counter = Counter()
    pipelines = [steps for each in all_datasets(dataset) if (steps := transforms_of(each))]
    before = [list(steps) for steps in pipelines]
    for steps in pipelines:
        kinds = Counter()
        for number, step in enumerate(steps):
            name = type(step).__name__
            kinds[name] += 1
            suffix = f" ({kinds[name]})" if kinds[name] > 1 else ""
            steps[number] = _Timed(step, name + suffix, spent)
    try:
        yield spent
    finally:
        for steps, old in zip(pipelines, before, strict=True):
            steps[:] = old


class _Timed:
    """A transform that notes how long it takes."""

    def __init__(self, transform: Callable, name: str, spent: Counter) -> None:
        self._transform, self._name, self._spent = transform, name, spent

    def __call__(self, data: dict[str, Any]) -> Any:
        start = time.perf_counter()
        try:
            return self._transform(data)
        finally:
            self._spent[self._name] += time.perf_counter() - start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transform, name)


def _measure_step(cfg: Config, loader: DataLoader, rounds: int, device: torch.device) -> _Rounds:
    """Train on a batch in each round, after one that warms up."""
    batches = list(islice(_batches(loader), rounds + 1))
    model = build_whole(cfg).to(device).train()
    if device.type == "cpu":
        use_amp_of_cpu(cfg)
    with quiet_logs():  # The groups of parameters.
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    clock = clock_of(device)
    return [
        (count, clock(partial(model.train_step, batch, optim_wrapper))) for count, batch in batches
    ][1:]


def report_feeding(feeding: Feeding, device: torch.device, command: str, out: Path | None) -> None:
    """Print the tables and the verdict, and write them into a folder, as Markdown and JSON."""
    remarks = [f"on {device_name(device)}"]
    if device.type == "cpu":
        remarks.append(
            "Step and workers were measured one after the other: on a CPU they share its cores."
        )
    remarks += filter(None, [busy_remark()])
    tables = list(feeding.tables())
    console = show_tables(command, remarks, tables)
    say(console, feeding.verdict)
    if out is None:
        return
    content = {"command": command, "machine": describe_machine(device), **asdict(feeding)}
    write_json(content | {"verdict": feeding.verdict}, out / JSON)
    write_markdown(command, remarks, tables, feeding.verdict, out)
    say(console, f"written to {out}")
