"""Attention weights as matrices: what a query gives to each key."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...attention.module import EPS
from ...attention.reference import feature_map
from .convolution import value_matrix
from .windows import Windows

DEFAULT_POWER = 3  # of the focused map, for layers that have none of their own


@dataclass(frozen=True)
class Variant:
    """One way to turn queries and keys into weights.

    Attributes:
        name: for tables and figures.
        power: p of the focused map, 1: plain linear attention; None: softmax.
        convolution: with the convolution of the values, as one matrix.
    """

    name: str
    power: float | None
    convolution: bool = False


def variants_of(windows: Windows) -> list[Variant]:
    """What to compare on the queries and keys of a layer, from softmax on; one of them is the layer.

    All take the same queries and keys. The convolution goes with the layer's own weights only, which are
    what it was trained with.
    """
    power = DEFAULT_POWER if windows.power is None else windows.power
    found = [Variant("softmax", None), Variant("plain linear", 1)]
    if power != 1:
        found.append(Variant("focused linear", power))
    own = found[0] if windows.power is None else found[-1]
    if windows.convolutions:
        short = own.name.removesuffix(" linear")
        found.insert(found.index(own) + 1, Variant(f"{short} + conv.", own.power, True))
    return found


def own_variant(windows: Windows) -> Variant:
    """The one of :func:`variants_of` that the layer computes."""
    same = [variant for variant in variants_of(windows) if variant.power == windows.power]
    return same[-1]


class Weights:
    """The weights of a variant in some windows.

    Args:
        windows: queries and keys.
        variant: softmax or a power; its convolution is :meth:`with_convolution`'s.
    """

    def __init__(self, windows: Windows, variant: Variant) -> None:
        self.windows = windows
        self.variant = variant
        self._q, self._k = windows.queries, windows.keys
        if variant.power is not None:
            # The norms of the focused map span the heads.
            self._q, self._k = (
                feature_map(x, None, variant.power, 0)
                for x in _positive(windows.feature_scale, self._q, self._k)
            )

    def matrix(self, window: int, position: int, rows: Tensor | None = None) -> Tensor:
        """M_attn: the weights of one head in one window.

        Rows sum to 1, with linear attention to a little less: eps is added to its normaliser.

        Args:
            window: 0 to G-1.
            position: of the head in ``windows.heads``.
            rows: the queries wanted; None: all.

        Returns:
            ``(n, m)`` or ``(len(rows), m)``.
        """
        q, k = (self.windows.of_head(x, window, position) for x in (self._q, self._k))
        q = q if rows is None else q[rows]
        bias = self._bias(window, position, rows)
        if self.variant.power is None:
            scores = q @ k.T * q.shape[-1] ** -0.5
            return (scores if bias is None else scores + bias).softmax(-1)
        scores = q @ k.T
        if bias is not None:
            # It has no place in linear attention; what must not be attended to has.
            scores = scores.masked_fill(bias == float("-inf"), 0)
        return scores / (scores.sum(-1, keepdim=True) + len(k) * EPS)

    def with_convolution(
        self, window: int, position: int, channel: int, rows: Tensor | None = None
    ) -> Tensor:
        """M_attn + M_DWC, which differs from channel to channel; arguments as for :meth:`matrix`."""
        added = value_matrix(self.windows, position, channel)
        if rows is not None:
            added = added.index_select(0, rows)
        matrix = self.matrix(window, position, rows)
        return matrix.add_(added)

    def factors(self, window: int, position: int) -> tuple[Tensor, Tensor] | None:
        """``A (n, d)`` and ``B (m, d)`` with ``A @ B.T`` = M_attn; None where there are none."""
        if self.variant.power is None or self.windows.score_bias is not None:
            return None
        q, k = (self.windows.of_head(x, window, position) for x in (self._q, self._k))
        return q / (q @ k.sum(0) + len(k) * EPS)[:, None], k

    def _bias(self, window: int, position: int, rows: Tensor | None) -> Tensor | None:
        bias = self.windows.score_bias
        if bias is None:
            return None
        bias = bias[window if len(bias) > 1 else 0, position]
        return bias if rows is None else bias[rows]


def _positive(scale: Tensor | None, *tensors: Tensor) -> Sequence[Tensor]:
    """ReLU(x) + eps, divided by the learned scale."""
    positive = [torch.relu(x) + EPS for x in tensors]
    return positive if scale is None else [x / scale for x in positive]
