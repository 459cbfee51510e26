"""The weights of a window as a matrix, its rank, and the proof that the matrices are the layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.module import EPS
from ...attention.reference import feature_map
from .layers import LayerCall, Windows, project


def convolution_matrix(kernel: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """The matrix M with ``M @ v`` = the convolution of one channel ``v (N,)``, without bias.

    The kernel ``(K, K)``, K odd, is applied as torch does, unflipped, with zero padding of K // 2, on
    N = H*W row-major tokens. Sparse ``(N, N)``: at most K*K entries in a row, in bands; less at the borders.
    """
    n, size = hw_shape[0] * hw_shape[1], kernel.shape[-1]
    numbers = torch.arange(1, n + 1, dtype=torch.float64).view(1, 1, *hw_shape)
    # [K*K, N], the token that an entry of the kernel meets at each token; -1 in the padding.
    met = F.unfold(numbers, size, padding=size // 2)[0].long() - 1
    entries, targets = (met >= 0).nonzero().T
    places = torch.stack([targets, met[entries, targets]])
    values = kernel.flatten()[entries]
    return torch.sparse_coo_tensor(places, values, (n, n), check_invariants=False).coalesce()


def after_stretching(matrix: Tensor, m: int) -> Tensor:
    """``matrix (l, n) @ S`` for the S that stretches m values to n along the token axis; both sparse.

    That is what comes before the convolution where PVT reduces keys and values: ``F.interpolate`` with
    ``mode="linear"``, which takes each value from two neighbours.
    """
    targets, sources = matrix.indices()
    places = ((sources + 0.5).double() * (m / matrix.shape[1]) - 0.5).clamp(0, m - 1)
    left = places.long()
    right = (left + 1).clamp_max(m - 1)
    share = (places - left).to(matrix.dtype)
    indices = torch.stack([targets.repeat(2), torch.cat([left, right])])
    values = torch.cat([matrix.values() * (1 - share), matrix.values() * share])
    shape = (len(matrix), m)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()


def value_matrix(windows: Windows, position: int, channel: int) -> Tensor:
    """M_DWC: the convolution of one channel of the head at a position, sparse ``(n, m)``.

    Where keys are reduced, values are stretched first.
    """
    n, m = windows.queries.shape[1], windows.keys.shape[1]
    kernels, _ = windows.convolution
    matrix = convolution_matrix(kernels[position, channel], windows.query_shape)
    return matrix if n == m else after_stretching(matrix, m)


def typical_channels(windows: Windows, position: int, count: int) -> list[int]:
    """Channels of a head by the size of their kernels: the median one, or ``count`` from small to large."""
    kernels, _ = windows.convolution
    order = kernels[position].flatten(1).square().sum(1).argsort().tolist()
    if count == 1:
        return [order[(len(order) - 1) // 2]]
    count = min(count, len(order))
    return [order[round(i * (len(order) - 1) / (count - 1))] for i in range(count)]


DEFAULT_POWER = 3  # of the focused map, for layers that have none of their own


@dataclass(frozen=True)
class Variant:
    """One way to turn queries and keys into weights."""

    name: str  # for tables and figures
    power: float | None  # p of the focused map, 1: plain linear attention; None: softmax
    convolution: bool = False  # with the convolution of the values, as one matrix


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
    if windows.convolution:
        short = own.name.removesuffix(" linear")
        found.insert(found.index(own) + 1, Variant(f"{short} + conv.", own.power, True))
    return found


def own_variant(windows: Windows) -> Variant:
    """The one of :func:`variants_of` that the layer computes."""
    return [variant for variant in variants_of(windows) if variant.power == windows.power][-1]


def own_attention(windows: Windows) -> list[Variant]:
    """What the layer computes without its convolution, whose weights differ from channel to channel."""
    return [variant for variant in variants_of(windows) if variant.power == windows.power][:1]


class Weights:
    """The weights of a variant in some windows; a head is named by its position in ``windows.heads``."""

    def __init__(self, windows: Windows, variant: Variant) -> None:
        self.windows = windows
        self.variant = variant
        self._q, self._k = windows.queries, windows.keys
        if variant.power is not None:
            # The norms of the focused map span the heads.
            scale = 1 if windows.feature_scale is None else windows.feature_scale
            self._q, self._k = (
                feature_map((torch.relu(x) + EPS) / scale, None, variant.power, 0)
                for x in (self._q, self._k)
            )

    def channels(self, position: int, count: int) -> list[int | None]:
        """Channels whose matrices to look at; None alone, where they do not differ."""
        if not self.variant.convolution:
            return [None]
        return typical_channels(self.windows, position, count)

    def matrix(
        self, window: int, position: int, rows: Tensor | None = None, channel: int | None = None
    ) -> Tensor:
        """M_attn of a head in one window, with a channel plus M_DWC: ``(n, m)``, or ``(len(rows), m)``.

        Rows of M_attn sum to 1, with linear attention to a little less: eps is added to its normaliser.
        """
        rows = torch.arange(self._q.shape[1]) if rows is None else rows
        q, k = (self.windows.of_head(x, window, position) for x in (self._q, self._k))
        scores, bias = q[rows] @ k.T, self.windows.score_bias
        if bias is not None:
            bias = bias[window if len(bias) > 1 else 0, position, rows]
        if self.variant.power is None:
            scores = scores * q.shape[-1] ** -0.5
            weights = (scores if bias is None else scores + bias).softmax(-1)
        else:
            if bias is not None:
                # It has no place in linear attention; what must not be attended to has.
                scores = scores.masked_fill(bias == float("-inf"), 0)
            weights = scores / (scores.sum(-1, keepdim=True) + len(k) * EPS)
        if channel is not None:
            weights += value_matrix(self.windows, position, channel).index_select(0, rows)
        return weights

    def factors(self, window: int, position: int) -> tuple[Tensor, Tensor] | None:
        """``A (n, d)`` and ``B (m, d)`` with ``A @ B.T`` = M_attn; None where there are none."""
        if self.variant.power is None or self.windows.score_bias is not None:
            return None
        q, k = (self.windows.of_head(x, window, position) for x in (self._q, self._k))
        return q / (q @ k.sum(0) + len(k) * EPS)[:, None], k


def output_from_matrices(parts: Sequence[Windows], num_tokens: int) -> Tensor:
    """``(M_attn + M_DWC) V + bias`` of all windows and heads: what the layer gives to its projection.

    ``parts`` are all windows of a layer, whose map has ``num_tokens``. Returns ``(N, C)`` in float64.
    """
    d = parts[0].head_dim
    heads = sum({part.heads: len(part.heads) for part in parts}.values())
    out = torch.zeros(num_tokens, heads * d, dtype=torch.float64)
    for part in parts:
        weights, inside = Weights(part, own_variant(part)), part.tokens >= 0
        for position, head in enumerate(part.heads):
            columns = slice(head * d, (head + 1) * d)
            for window, (tokens, real) in enumerate(zip(part.tokens, inside, strict=True)):
                values = part.of_head(part.values, window, position)
                out[tokens[real], columns] = (weights.matrix(window, position) @ values)[real]
            for channel in range(d if part.convolution else 0):
                # All windows at once: the kernel does not change from window to window.
                values = part.values[:, :, position * d + channel].T  # [m, G]
                bias = part.convolution[1][position, channel]
                result = (value_matrix(part, position, channel) @ values + bias).T
                out[part.tokens[inside], head * d + channel] += result[inside]
    return out


TOLERANCE = 1e-5  # of the largest singular value


@dataclass(frozen=True)
class Spectrum:
    """The singular values of an ``(n, m)`` matrix."""

    shape: tuple[int, int]  # (n, m), of the rows looked at
    values: tuple[float, ...]  # as parts of the largest, falling
    is_lower_bound: bool = False  # rows were sampled: the rank of all of them may be higher

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


@dataclass(frozen=True)
class WeightMap:
    """What one query gives to every key."""

    variant: Variant
    # (height, width) of the map of the keys; NaN outside of the query's window. With a convolution of the
    # channel with the median kernel, and of either sign.
    weights: np.ndarray
    channel: int | None  # with a convolution, of the head


def query_token(point: tuple[float, float], hw_shape: tuple[int, int]) -> int:
    """The token at a point ``(x, y)``, both from 0 to 1 of the image's width and height."""
    (x, y), (height, width) = point, hw_shape
    row, column = (min(int(p * size), size - 1) for p, size in ((y, height), (x, width)))
    return row * width + column


class LayerWeights:
    """The weights of one layer for one image, from which maps of many queries are made quickly.

    Args:
        call: of the layer.
        choose: which variants of a layer to look at.
    """

    def __init__(
        self, call: LayerCall, choose: Callable[[Windows], Sequence[Variant]] = variants_of
    ) -> None:
        self._call = call
        self._choose = choose
        self._parts = project(call.layer.module, call.tokens, call.hw_shape)
        self._weights: dict[int, list[Weights]] = {}

    def maps(self, head: int, token: int) -> list[WeightMap]:
        """The weights of the query ``token`` in the variants; ValueError if the layer has no such head."""
        parts = [part for part in self._parts if head in part.heads]
        if not parts:
            raise ValueError(f"layer {self._call.layer.name} has no head {head}")
        part, window, row = _find(parts, token)
        position = part.heads.index(head)
        maps = []
        for weights in self._weights_in(part):
            (channel,) = weights.channels(position, 1)
            (values,) = weights.matrix(window, position, row, channel)
            weight_map = _as_map(values, part, window, self._call.hw_shape)
            maps.append(WeightMap(weights.variant, weight_map, channel))
        return maps

    def _weights_in(self, part: Windows) -> list[Weights]:
        if id(part) not in self._weights:
            self._weights[id(part)] = [Weights(part, variant) for variant in self._choose(part)]
        return self._weights[id(part)]


def _find(parts: Sequence[Windows], token: int) -> tuple[Windows, int, torch.Tensor]:
    for part in parts:
        places = (part.tokens == token).nonzero()
        if len(places):
            return part, int(places[0, 0]), places[0, 1:]
    raise ValueError(f"there is no token {token}")


def _as_map(
    values: torch.Tensor, part: Windows, window: int, hw_shape: tuple[int, int]
) -> np.ndarray:
    if part.key_shape != part.query_shape:
        return values.view(part.key_shape).numpy()
    tokens = part.tokens[window]
    inside = tokens >= 0
    whole = torch.full((hw_shape[0] * hw_shape[1],), float("nan"), dtype=values.dtype)
    whole[tokens[inside]] = values[inside]
    return whole.view(hw_shape).numpy()
