"""Random numbers that depend on the position in a training, not on what was drawn before."""

import random

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner


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
