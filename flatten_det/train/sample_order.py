"""Batches that can begin anywhere, with random numbers that depend on the position in a training alone."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, IterableDataset


def derive_seed(*numbers: int) -> int:
    """A well-mixed seed of 63 bits for a tuple of non-negative numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def seed_iteration(seed: int, iteration: int) -> None:
    """Set all generators of this process to where they are at the start of an iteration.

    That makes an iteration's dropout and sampling the same, wherever the run was stopped and
    resumed, without a state to be stored, on every rank. It costs some ten microseconds.

    Args:
        seed: The run's seed; of this rank, if ranks have seeds of their own.
        iteration: Iterations done before, from 0.
    """
    derived = derive_seed(seed, iteration)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


class SeedIterationHook(Hook):
    """Applies :func:`seed_iteration` to every iteration of a training."""

    # Before any other hook draws a number.
    priority = "HIGHEST"

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """Set the generators."""
        seed_iteration(runner.seed, runner.iter)


class SeededIndex(int):
    """The index of a sample, with the seed that its augmentation shall have.

    It brings the seed to the data workers, whichever of them gets the index.
    """

    def __new__(cls, index: int, seed: int) -> "SeededIndex":
        """An ``index`` that is equal to the plain number."""
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        """What pickle makes it from."""
        return int(self), self.seed


class SeededItems:
    """A data set's ``__getitems__``, PyTorch's hook for reading several samples.

    It sets the generators of Python, NumPy and PyTorch (CPU) before each sample.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._own = getattr(dataset, "__getitems__", None)

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        """Read samples."""
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
    """A batch sampler that can begin within an epoch, and gives every sample a seed.

    ``sampler`` is the other one's, where mmengine sets the epoch.

    Args:
        batch_sampler: The one that makes the batches.
        seeds: What all seeds depend on besides the position: the run's seed and the rank.
    """

    def __init__(self, batch_sampler: Any, seeds: tuple[int, ...]) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = getattr(batch_sampler, "sampler", None)
        self.batch_size = getattr(batch_sampler, "batch_size", None)
        self.drop_last = getattr(batch_sampler, "drop_last", False)
        self._seeds = seeds
        self._begun: tuple[Iterator[list[int]], int] | None = None
        self._missing = 0

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        """One epoch, or what is left of it."""
        if self._begun is None:
            self._begun, self._missing = (iter(self.batch_sampler), 0), 0
        (batches, position), self._begun = self._begun, None
        epoch = getattr(self.sampler, "epoch", 0)
        for batch in batches:
            seeds = (derive_seed(*self._seeds, epoch, position, n) for n in range(len(batch)))
            yield [SeededIndex(index, seed) for index, seed in zip(batch, seeds, strict=True)]
            position += 1

    def __len__(self) -> int:
        """Batches of the epoch, without those left out."""
        return len(self.batch_sampler) - self._missing

    def skip(self, count: int, epoch: int) -> None:
        """Begin the next epoch, which is number ``epoch``, after ``count`` batches."""
        self.fast_forward(count, epoch)
        self._missing = count

    def fast_forward(self, count: int, epoch: int = 0) -> int:
        """Begin after ``count`` batches, which may be those of several epochs.

        No sample is read for it.

        Returns:
            The epoch that this is in.
        """
        self._set_epoch(epoch)
        batches, position = iter(self.batch_sampler), 0
        while count:
            if next(batches, None) is not None:
                position += 1
                count -= 1
            elif position:
                epoch += 1
                self._set_epoch(epoch)
                batches, position = iter(self.batch_sampler), 0
            else:
                raise ValueError("the batch sampler has no batches")
        self._begun = batches, position
        return epoch

    def _set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def with_positions(loader: DataLoader, seeds: tuple[int, ...]) -> DataLoader:
    """The same loader with :class:`PositionedBatches` and a data set that heeds their seeds.

    Iterable data sets, which cannot be asked for a sample, stay as they are.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return loader
    if not isinstance(getattr(loader.dataset, "__getitems__", None), SeededItems):
        loader.dataset.__getitems__ = SeededItems(loader.dataset)
    return DataLoader(
        loader.dataset,
        batch_sampler=PositionedBatches(loader.batch_sampler, seeds),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        in_order=loader.in_order,
    )
