"""How much faster a training is with more processes: steps with and without the exchange of gradients.

Scaling is weak: the batch of a process stays the same. In each round the processes do a step, the same
without the reduction of gradients (``no_sync`` of DDP, PyTorch's ``DistributedDataParallel``), and an
all-reduce of as many bytes, in rotating order. Batches are loaded before, and the learning rate is 0, so that
all rounds do the same work.
"""

import copy
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from tempfile import TemporaryDirectory
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce, barrier, get_world_size
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, set_random_seed

from ...config import build_runner
from ...distributed import connect
from ...errors import UserError
from ...train.optimizer import use_amp_of_cpu
from ...train.run import use_our_components
from ..output import number
from .data import without_workers
from .memory import peak_of_this_process
from .timing import clock_of, paired_speedup

# DDP reduces while the backward pass goes on, which has two thirds of a step's multiply-adds, all but the
# bucket that is full last.
BACKWARD = 2 / 3
BUCKET_BYTES = 25 * 2**20
_BATCHES = 8  # of a process, at most
_STEP, _ALONE, _ALL_REDUCE = "step", "alone", "all-reduce"
_COLUMNS = {  # of a table: the figure's name, its factor and its format
    "processes": ("processes", 1, "d"),
    "images/s": ("images_per_second", 1, ".3g"),
    "efficiency %": ("efficiency", 100, ".0f"),
    "step ms": ("step_s", 1e3, ".4g"),
    "predicted ms": ("predicted_step_s", 1e3, ".4g"),
    "communication %": ("communication", 100, ".1f"),
    "gradients MB": ("gradient_bytes", 1e-6, ".4g"),
    "GB/s": ("bytes_per_second", 1e-9, ".3g"),
    "peak GiB": ("peak_bytes", 2**-30, ".2f"),
}


def ring_seconds(size: float, processes: int, bandwidth: float, latency: float = 0.0) -> float:
    """What an all-reduce of ``size`` bytes takes in a ring.

    Each process sends 2 (n - 1) pieces of ``size`` / n bytes to the next one, with ``bandwidth`` in bytes per
    second and a ``latency`` in seconds for each piece.
    """
    return 2 * (processes - 1) * (size / processes / bandwidth + latency)


def step_seconds(alone: float, reduction: float, size: float, overlap: float = BACKWARD) -> float:
    """What a step takes that needs ``alone`` seconds without the ``reduction`` of ``size`` bytes.

    That is hidden in the part ``overlap`` of the step, but for the last bucket's.
    """
    last = reduction * min(BUCKET_BYTES / size, 1)
    return alone + max(reduction - overlap * alone, last)


@dataclass(frozen=True)
class World:
    """What was measured with one number of processes; of each round the seconds of the slowest one."""

    processes: int
    device: str
    threads: int  # of each process, on a CPU
    batch: int  # of each process
    step: Sequence[float]
    alone: Sequence[float]  # steps without the reduction; empty of one process
    all_reduce: Sequence[float]
    gradient_bytes: int
    peak_bytes: int | None  # of the process that took most; None where that cannot be measured

    def figures(self, one: "World | None") -> dict[str, float | None]:
        """What the rounds say, under the names of the table's columns; ``one`` process is the baseline."""
        seconds = statistics.median(self.step)
        figures = {
            "processes": self.processes,
            "images_per_second": self.processes * self.batch / seconds,
            "efficiency": one and statistics.median(one.step) / seconds,
            "step_s": seconds,
            **dict.fromkeys(("predicted_step_s", "communication", "bytes_per_second")),
            "gradient_bytes": self.gradient_bytes,
            "peak_bytes": self.peak_bytes,
        }
        if self.alone:
            reduction = statistics.median(self.all_reduce)
            # On a CPU a reduction takes the cores that the backward pass needs.
            overlap = 0 if self.device == "cpu" else BACKWARD
            figures["predicted_step_s"] = step_seconds(
                statistics.median(self.alone), reduction, self.gradient_bytes, overlap
            )
            figures["communication"] = 1 - paired_speedup(self.alone, self.step)
            sent = ring_seconds(self.gradient_bytes, self.processes, bandwidth=1)
            figures["bytes_per_second"] = sent / reduction
        return figures


def cells(figures: Mapping[str, float | None]) -> dict[str, str]:
    """The :meth:`World.figures` as texts, by the headings of a table."""
    return {
        heading: number(figures[name] and figures[name] * factor, form)
        for heading, (name, factor, form) in _COLUMNS.items()
    }


def explain_table(worlds: Sequence[World]) -> str:
    """What the columns mean, and on a CPU what the processes share."""
    text = (
        f"Each process has batches of {worlds[0].batch}. Step: median over rounds of the slowest process, "
        "with the optimizer, without loading data. Efficiency: images/s of a process against those of one "
        "alone. Communication: the part of a step that is saved without the reduction of gradients. GB/s: "
        "what a process sends in an all-reduce of the gradients without a step, if in a ring. Predicted: "
        "from the step without reduction and that all-reduce. "
    )
    if worlds[0].device != "cpu":
        return text + "Peak memory: of PyTorch's allocator."
    cores, threads = os.cpu_count() or 1, worlds[0].threads
    text += (
        "Peak memory: resident, beyond imports and batches. The processes share this machine's memory, and "
        f"each, one alone too, has {threads} thread{'s' * (threads > 1)}, as if it brought cores with it. "
        f"There are {cores} cores"
    )
    limits = {w.processes: cores / (w.processes * threads) for w in worlds}
    short = [f"{best:.0%} with {count}" for count, best in limits.items() if best < 1]
    return f"{text}, so that efficiency is at most {', '.join(short)}." if short else f"{text}."


def measure(cfg: Config, steps: int, warmup: int) -> World:
    """Train in this process and those started beside it: ``steps`` rounds after ``warmup`` others.

    The config is changed. UserError if there is nothing to train, or to train on.
    """
    _strip(cfg)
    connect(cfg)
    on_cuda = torch.cuda.is_available()
    done: list[tuple[dict[str, list[float]], int]] = []
    with TemporaryDirectory(prefix="flatten_det_") as cfg.work_dir, use_our_components():
        batches = _load_batches(cfg)

        def train() -> None:
            done.append(_train(cfg, batches, steps, warmup))

        if sys.platform.startswith("linux") and not on_cuda:
            peak = peak_of_this_process(train)
        else:
            train()
            peak = torch.cuda.max_memory_allocated() if on_cuda else 0
    ((times, gradient_bytes),) = done
    # A float64 has every byte of the peak.
    most = torch.tensor([*chain(*times.values()), peak], dtype=torch.float64)
    all_reduce(most, "max")
    rows = dict(zip(times, most[:-1].view(-1, steps).tolist(), strict=True))
    return World(
        processes=get_world_size(),
        device="cuda" if on_cuda else "cpu",
        threads=torch.get_num_threads(),
        batch=cfg.train_dataloader.batch_size,
        step=rows[_STEP],
        alone=rows.get(_ALONE, []),
        all_reduce=rows.get(_ALL_REDUCE, []),
        gradient_bytes=gradient_bytes,
        peak_bytes=int(most[-1]) or None,
    )


def _strip(cfg: Config) -> None:
    """Leave of a config what a step needs, and have no step change the weights."""
    unused = [
        f"{kind}_{part}" for kind in ("val", "test") for part in ("cfg", "dataloader", "evaluator")
    ]
    for name in ("visualizer", "custom_hooks", *unused):
        cfg[name] = None
    cfg.log_level = "ERROR"
    cfg.optim_wrapper.optimizer.lr = 0.0
    cfg.optim_wrapper.pop("accumulative_counts", None)
    cfg.train_dataloader = without_workers(cfg.train_dataloader)
    if not torch.cuda.is_available():
        use_amp_of_cpu(cfg)


def _load_batches(cfg: Config) -> list[Any]:
    set_random_seed(0, diff_rank_seed=True)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmdet")):
        loader = Runner.build_dataloader(copy.deepcopy(cfg.train_dataloader), seed=0)
    batches = list(islice(loader, _BATCHES))
    if not batches:
        raise UserError("the training data of this config have not enough images for one batch")
    return batches


def _train(
    cfg: Config, batches: Sequence[Any], steps: int, warmup: int
) -> tuple[dict[str, list[float]], int]:
    """The seconds of the rounds in this process, by what was done, and the bytes of the gradients."""
    runner = build_runner(cfg)
    model = runner.model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    if not learned:
        raise UserError("the model of this config has no weight to train")
    optimizer = runner.build_optim_wrapper(cfg.optim_wrapper)
    gradients = torch.zeros(sum(p.numel() for p in learned), device=learned[0].device)
    kinds = [_STEP] if get_world_size() == 1 else [_STEP, _ALONE, _ALL_REDUCE]
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    clock = clock_of(gradients.device)
    for turn in range(warmup + steps):
        start = turn % len(kinds)
        for kind in kinds[start:] + kinds[:start]:
            # The model changes what it gets.
            batch = copy.deepcopy(batches[turn % len(batches)])
            step = partial(model.train_step, batch, optimizer)
            barrier()
            with model.no_sync() if kind == _ALONE else nullcontext():
                seconds = clock(partial(all_reduce, gradients) if kind == _ALL_REDUCE else step)
            if turn >= warmup:
                times[kind].append(seconds)
    return times, gradients.nbytes
