"""How sharp attention weights are: entropy, top-k mass, effective number of tokens, Gini."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import log

import torch
from torch import Tensor

TOP = 10  # keys of the top-k mass
_ENTRIES = 1 << 21  # of a portion of rows


@dataclass(frozen=True)
class Sharpness:
    """Means over queries.

    Attributes:
        entropy: H of the weights of a query, in nats.
        normalised_entropy: H / log m for m keys: 1 for equal weights, 0 for one key alone.
        top_mass: what the :data:`TOP` keys with most weight have of all.
        effective_tokens: exp(H), the number of equal weights with this entropy.
        gini: Gini coefficient: 0 for equal weights, (m-1)/m for one key alone.
    """

    entropy: float
    normalised_entropy: float
    top_mass: float
    effective_tokens: float
    gini: float


def sharpness_of_rows(matrix: Tensor) -> Tensor:
    """The statistics of each row, ``(n, 5)`` in the order of :class:`Sharpness`.

    Of the absolute values, divided by their sum: with a convolution, weights may be negative and do not sum
    to 1.

    Args:
        matrix: ``(n, m)``, no row all zero.
    """
    # A portion at a time: sorting and logarithms take several times the memory of what they are given.
    portion = max(_ENTRIES // matrix.shape[1], 1)
    return torch.cat([_sharpness(rows) for rows in matrix.split(portion)])


def _sharpness(rows: Tensor) -> Tensor:
    m = rows.shape[1]
    shares = rows.abs()
    shares = shares / shares.sum(-1, keepdim=True)
    # Rounding makes it -1e-16 for one key alone.
    entropy = torch.special.entr(shares).sum(-1).clamp_min(0)
    ordered = shares.sort(-1).values
    ranks = torch.arange(1, m + 1, dtype=shares.dtype)
    gini = 2 * (ordered * ranks).sum(-1) / m - (m + 1) / m
    values = (
        entropy,
        entropy / log(m) if m > 1 else torch.zeros_like(entropy),
        ordered[:, -TOP:].sum(-1),
        entropy.exp(),
        gini,
    )
    return torch.stack(values, dim=-1)


def mean_sharpness(of_rows: Iterable[Tensor]) -> Sharpness:
    """The means over the rows of all of ``of_rows``, each ``(n, 5)``."""
    means = torch.cat(list(of_rows)).mean(0).tolist()
    return Sharpness(**dict(zip((field.name for field in fields(Sharpness)), means, strict=True)))
