"""Mean and deviation over seeds, and paired comparisons of two variants."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Paired:
    """A variant compared with the baseline over the seeds that both have.

    Attributes:
        difference: mean of the differences, variant minus baseline.
        error: standard error of that mean; None with fewer than two seeds.
        t: difference / error; None where there is no error or it is 0.
        p: two-sided p-value of ``t`` with ``pairs - 1`` degrees of freedom; None without ``t``.
        pairs: seeds compared.
    """

    difference: float
    error: float | None
    t: float | None
    p: float | None
    pairs: int


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the sample's standard deviation (n - 1 in the denominator), None for one value."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), deviation


def compare(variant: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """Paired t-test over seeds: the order of the data is a pair's in common.

    Args:
        variant: seed -> value.
        baseline: the same of the baseline.

    Returns:
        None if no seed is in both.
    """
    seeds = sorted(variant.keys() & baseline.keys())
    if not seeds:
        return None
    difference, deviation = mean_and_deviation([variant[seed] - baseline[seed] for seed in seeds])
    if deviation is None:
        return Paired(difference, None, None, None, len(seeds))
    error = deviation / math.sqrt(len(seeds))
    if error == 0:
        return Paired(difference, error, None, None, len(seeds))
    t = difference / error
    return Paired(difference, error, t, float(2 * stats.t.sf(abs(t), len(seeds) - 1)), len(seeds))
