"""Continue a training at the very batch where a checkpoint was saved, with the same random numbers."""

import bisect
import contextlib
import copy
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..distributed import connect, from_first_process, launch_id
from ..errors import UserError
from ..files.checkpoints import check_checkpoint, unwrapped
from .checkpoints import NoCheckpointError, newest_valid_checkpoint, why_not_resumable
from .optimizer import fit_saved_optimizer, loss_scale


def resume_from(cfg: Config, checkpoint: str | None) -> None:
    """Have a training continue another one: ``resume`` and ``load_from`` of its config are set.

    ``checkpoint`` is where to go on from; ``"auto"``: the newest valid one of the work dir; None: that too
    if the config has ``resume`` without ``load_from`` and there is one, else as it says. One that is not
    there, or cannot be read, is a UserError; ``"auto"`` where there is none is a NoCheckpointError.

    Processes that torchrun or ``--processes`` starts again go on from the newest valid checkpoint that they
    wrote before, as soon as there is one. The first process chooses for all.
    """
    connect(cfg)
    chosen = from_first_process(lambda: _checkpoint_to_resume(cfg, checkpoint))
    if chosen is not None:
        cfg.resume = True
        cfg.load_from = chosen


def _checkpoint_to_resume(cfg: Config, checkpoint: str | None) -> str | None:
    if launch := launch_id():
        with contextlib.suppress(UserError):  # There is none, or none is valid.
            return newest_valid_checkpoint(cfg.work_dir, launch)
    if checkpoint is None:
        if cfg.get("resume") and not cfg.get("load_from"):
            # mmengine would take what last_checkpoint names, whatever that is, or start anew.
            with contextlib.suppress(NoCheckpointError):
                return newest_valid_checkpoint(cfg.work_dir)
        return None
    if checkpoint == "auto":
        checkpoint = newest_valid_checkpoint(cfg.work_dir)
    else:
        check_checkpoint(checkpoint)
        reason = None if "://" in checkpoint else why_not_resumable(checkpoint)
        if reason is not None:
            raise UserError(
                f"checkpoint {checkpoint} cannot be resumed: {reason}: give another one, or start from "
                "its weights alone with --cfg-options load_from=... instead of --resume"
            )
    return checkpoint


class ResumePositionHook(Hook):
    """Does what mmengine's resume leaves out, so that a resumed run equals an uninterrupted one.

    Every checkpoint gets a ``meta['position']`` with

    - ``epoch_batches_done``: batches of the current epoch that were trained on;
    - ``epoch_batches``: batches per epoch, as the position means nothing for another number;
    - ``validation_due``: whether a validation was to come, or had begun;
    - ``sampler_seed``: what the order of the data follows;
    - ``written``: the time in seconds, which is the same everywhere, unlike mmengine's;
    - ``launch``: by whose processes, see :func:`~flatten_det.distributed.launch_id`;

    and, in the middle of an accumulation, the ``gradients`` so far (of a run without other ranks) with
    their ``loss_scale``. The precision may be another one after it.
    A resumed epoch goes on with the batches that are left; a validation that was due takes place.
    Augmentations depend on seed and position alone, whatever the number of ranks, see
    :class:`PositionedBatches`; the model's random numbers on seed and iteration, see
    :class:`SeedIterationHook`.
    """

    # When the training begins, the other hooks must be ready for the validation.
    priority = "LOWEST"

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._validating = False
        self._launch = launch_id() if is_main_process() else None
        # Of the epoch that is under way: its number, and the iteration that it began with.
        self._epoch, self._epoch_begin = -1, 0
        # Batches of the epoch to begin that a resumed run has done.
        self._done_before = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember where the loaded run was, and have its optimizer fit this one's."""
        self._loaded = {
            "position": checkpoint.get("meta", {}).get("position", {}),
            "gradients": checkpoint.get("gradients", {}),
        }
        optimizer = checkpoint.get("optimizer", {})
        if optimizer.get("loss_scaler") == {}:
            # Of bf16, which has no scale; one of fp16 would not take it.
            del optimizer["loss_scaler"]
        if runner._resume and optimizer and isinstance(runner.optim_wrapper, OptimWrapper):
            parameters = _parameters(runner.model).values()
            fit_saved_optimizer(checkpoint, runner.optim_wrapper, list(parameters))

    def before_train(self, runner: Runner) -> None:
        """Restore order, position and gradients, and make up for the validation.

        A UserError if the run stopped within an epoch that is of another length now.
        """
        loop = runner.train_loop
        # A new training, perhaps from the weights of another one, takes no position from it.
        loaded = self._loaded if runner.iter else {}
        position = loaded.get("position", {})
        if isinstance(loop, EpochBasedTrainLoop | IterBasedTrainLoop):
            if runner.iter:
                _restore_order(runner, loop.dataloader, position)
            ranks = (get_rank(), get_world_size())
            loop.dataloader = with_positions(loop.dataloader, runner.seed, ranks)
            if isinstance(loop, IterBasedTrainLoop):
                loop.dataloader_iterator = _PositionedIterator(loop.dataloader)
            elif done := position.get("epoch_batches_done"):
                _skip_batches(loop, done, position["epoch_batches"])
                self._done_before = done
        rescale = loss_scale(runner.optim_wrapper) / position.get("loss_scale", 1.0)
        parameters = _parameters(runner.model)
        for name, gradient in loaded.get("gradients", {}).items():
            if name in parameters:
                parameters[name].grad = gradient.to(parameters[name]) * rescale
        self._loaded = {}
        if position.get("validation_due") and runner.val_loop is not None:
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        self._epoch = runner.epoch
        self._epoch_begin = runner.iter - self._done_before
        self._done_before = 0

    def before_val(self, runner: Runner) -> None:
        """Note that checkpoints belong to a validation from here on, such as the best one."""
        self._validating = True

    def after_val(self, runner: Runner) -> None:
        self._validating = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta, loop = checkpoint["meta"], runner.train_loop
        position = meta.setdefault("position", {})
        position["written"] = time.time()
        position["launch"] = self._launch
        if (seed := getattr(_sampler(runner.train_dataloader), "seed", None)) is not None:
            position["sampler_seed"] = seed
        if isinstance(loop, EpochBasedTrainLoop):
            within = meta["epoch"] == self._epoch and not self._validating
            done = meta["iter"] - self._epoch_begin if within else 0
            batches = runner.max_iters // runner.max_epochs
            position.update(epoch_batches=batches, epoch_batches_done=done)
            stage = 0 if done else meta["epoch"]
            last = runner.max_epochs
        else:
            stage, last = meta["iter"], runner.max_iters
        due = not self._validating and runner.val_loop is not None and _validates(loop, stage, last)
        position.setdefault("validation_due", due)  # An interruption knows it better.
        if not is_complete(runner) and get_world_size() == 1:
            position["loss_scale"] = loss_scale(runner.optim_wrapper)
            checkpoint["gradients"] = {
                name: parameter.grad.cpu()
                for name, parameter in _parameters(runner.model).items()
                if parameter.grad is not None
            }


def is_complete(runner: Runner) -> bool:
    """Whether no gradients are accumulated for a later update."""
    wrapper = runner.optim_wrapper
    return not isinstance(wrapper, OptimWrapper) or wrapper.should_update()


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(unwrapped(model).named_parameters())


def _validates(loop: Any, stage: int, last: int) -> bool:
    """Whether mmengine's loops validate after ``stage`` of ``last`` epochs or iterations."""
    if not stage:
        return False
    chosen = bisect.bisect(loop.dynamic_milestones, stage + 1) - 1
    interval = loop.dynamic_intervals[chosen]
    return stage >= loop.val_begin and (stage % interval == 0 or stage == last)


def _sampler(loader: DataLoader) -> Any:
    """What decides about the order, also where a batch sampler of the config's stands before it."""
    sampler = getattr(loader.batch_sampler, "sampler", None)
    return loader.sampler if sampler is None else sampler


def _restore_order(runner: Runner, loader: DataLoader, position: dict[str, Any]) -> None:
    """mmengine seeds the sampler before it reads the checkpoint."""
    seed = position.get("sampler_seed")
    if seed is None and not runner.cfg.get("randomness", {}).get("diff_rank_seed"):
        seed = runner.seed
    if seed is not None and hasattr(_sampler(loader), "seed"):
        _sampler(loader).seed = seed


def _skip_batches(loop: EpochBasedTrainLoop, done: int, expected: int) -> None:
    if expected != len(loop.dataloader):
        raise UserError(
            f"the run to resume stopped after {done} of {expected} batches of an epoch, "
            f"which now has {len(loop.dataloader)}: use the same data, batch size and "
            "number of GPUs, or resume from an earlier checkpoint with --resume PATH"
        )
    if isinstance(loop.dataloader.batch_sampler, PositionedBatches):
        loop.dataloader.batch_sampler.skip(done, loop.epoch)


class _PositionedIterator(_InfiniteDataloaderIterator):
    """What an iteration-based loop takes its batches from."""

    def skip_iter(self, num_iters: int) -> None:
        """Begin after the batches of earlier iterations, without reading them."""
        batches = self._dataloader.batch_sampler
        if isinstance(batches, PositionedBatches):
            self._epoch = batches.fast_forward(num_iters)
        else:
            super().skip_iter(num_iters)


def with_positions(loader: DataLoader, seed: int, ranks: tuple[int, int] = (0, 1)) -> DataLoader:
    """The same loader with :class:`PositionedBatches` and a data set that heeds their seeds.

    Iterable data sets, which cannot be asked for a sample, stay as they are.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return loader
    if not isinstance(getattr(loader.dataset, "__getitems__", None), SeededItems):
        loader.dataset.__getitems__ = SeededItems(loader.dataset)
    positioned, batches = copy.copy(loader), PositionedBatches(loader.batch_sampler, seed, ranks)
    # Past a loader's own guard against changes; and not with the workers that it has begun with.
    vars(positioned).update(batch_sampler=batches, _iterator=None)
    return positioned


class SeededIndex(int):
    """The index of a sample, which brings the seed of its augmentation to whichever worker gets it."""

    def __new__(cls, index: int, seed: int) -> "SeededIndex":
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:  # What pickle makes it from.
        return int(self), self.seed


class SeededItems:
    """A data set's ``__getitems__``, PyTorch's hook for reading several samples.

    It sets the generators of Python, NumPy and PyTorch (CPU) before each sample.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._own = getattr(dataset, "__getitems__", None)

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        return [self._item(index) for index in indices]

    def _item(self, index: int) -> Any:
        if isinstance(index, SeededIndex):
            random.seed(index.seed)
            np.random.seed(index.seed % 2**32)
            # Not torch.manual_seed, which is for GPUs too, whose numbers are the model's.
            torch.default_generator.manual_seed(index.seed)
            index = int(index)
        return self._own([index])[0] if self._own else self._dataset[index]


class PositionedBatches:
    """Another one's batches, which can begin within an epoch, and a seed for every sample.

    ``sampler`` is the other one's, where mmengine sets the epoch. The seeds depend on the run's and on the
    place of a sample in the epoch, of which the samplers of ``ranks``, this one's number and how many there
    are, give each its own: any number of ranks augments a sample alike.
    """

    def __init__(self, batch_sampler: Any, seed: int, ranks: tuple[int, int] = (0, 1)) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = getattr(batch_sampler, "sampler", None)
        self.batch_size = getattr(batch_sampler, "batch_size", None)
        self.drop_last = getattr(batch_sampler, "drop_last", False)
        self._seed = seed
        self._rank, self._world_size = ranks
        # An epoch that has begun, and how many samples of it are done.
        self._begun: tuple[Iterator[list[int]], int] | None = None
        self._missing = 0

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        if self._begun is None:
            self._begun, self._missing = (iter(self.batch_sampler), 0), 0
        (batches, done), self._begun = self._begun, None
        epoch = getattr(self.sampler, "epoch", 0)
        for batch in batches:
            places = (n * self._world_size + self._rank for n in range(done, done + len(batch)))
            seeds = (derive_seed(self._seed, epoch, place) for place in places)
            yield [SeededIndex(index, seed) for index, seed in zip(batch, seeds, strict=True)]
            done += len(batch)

    def __len__(self) -> int:
        """Batches of the epoch, without those left out."""
        return len(self.batch_sampler) - self._missing

    def skip(self, count: int, epoch: int) -> None:
        self.fast_forward(count, epoch)
        self._missing = count

    def fast_forward(self, count: int, epoch: int = 0) -> int:
        """Begin after ``count`` batches, of several epochs perhaps, without reading them; in which one."""
        self._set_epoch(epoch)
        batches, done = iter(self.batch_sampler), 0
        while count:
            if (batch := next(batches, None)) is not None:
                done += len(batch)
                count -= 1
            elif done:
                epoch += 1
                self._set_epoch(epoch)
                batches, done = iter(self.batch_sampler), 0
            else:
                raise ValueError("the batch sampler has no batches")
        self._begun = batches, done
        return epoch

    def _set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


class SeedIterationHook(Hook):
    """Applies :func:`seed_iteration` to every iteration of a training."""

    # Before any other hook draws a number.
    priority = "HIGHEST"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        seed_iteration(runner.seed, runner.iter)


def seed_iteration(seed: int, iteration: int) -> None:
    """Set all generators of this process to where they are at the start of an iteration, from 0.

    So its dropout and sampling are the same, wherever the run was stopped and resumed, without a stored
    state.
    """
    derived = derive_seed(seed, iteration)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


def derive_seed(*numbers: int) -> int:
    """A well-mixed seed of 63 bits for a tuple of non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
