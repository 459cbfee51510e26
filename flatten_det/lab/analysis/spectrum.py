"""Singular values and numerical rank of attention matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-5  # of the largest singular value


@dataclass(frozen=True)
class Spectrum:
    """The singular values of an ``(n, m)`` matrix.

    Attributes:
        shape: ``(n, m)``, of the rows looked at.
        values: singular values as parts of the largest, falling.
        is_lower_bound: rows were sampled: the rank of all of them may be higher.
    """

    shape: tuple[int, int]
    values: tuple[float, ...]
    is_lower_bound: bool = False

    @property
    def rank(self) -> int:
        """Singular values above :data:`TOLERANCE`."""
        return sum(value > TOLERANCE for value in self.values)

    @property
    def full_rank(self) -> int:
        """The largest rank that the shape allows."""
        return min(self.shape)


def spectrum(matrix: Tensor, is_lower_bound: bool = False) -> Spectrum:
    """Of a dense ``(n, m)`` matrix in float64."""
    return _relative(torch.linalg.svdvals(matrix), matrix.shape, is_lower_bound)


def spectrum_of_product(a: Tensor, b: Tensor) -> Spectrum:
    """Of ``a @ b.T`` for ``a (n, d)`` and ``b (m, d)``, at the cost of d x d matrices.

    With a = Q_a R_a and b = Q_b R_b, the product is Q_a (R_a R_b^T) Q_b^T and has the singular values of
    what is in brackets; all others are zero.
    """
    shape = (len(a), len(b))
    _, of_a = torch.linalg.qr(a)
    _, of_b = torch.linalg.qr(b)
    values = torch.linalg.svdvals(of_a @ of_b.T)
    zeros = values.new_zeros(min(shape) - len(values))
    return _relative(torch.cat([values, zeros]), shape, False)


def _relative(values: Tensor, shape: tuple[int, int], is_lower_bound: bool) -> Spectrum:
    values = values / values[0].clamp_min(torch.finfo(values.dtype).tiny)
    return Spectrum(tuple(shape), tuple(values.tolist()), is_lower_bound)
