"""Measuring attention over images: ranks, sharpness, their means and intervals, and tables of them."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import inf, log
from operator import sub
from statistics import mean
from typing import Any

import torch
from rich.table import Table
from scipy import stats
from torch import Tensor

from .layers import LayerCall, Windows, project
from .matrices import (
    Spectrum,
    Variant,
    Weights,
    output_from_matrices,
    own_variant,
    spectrum,
    spectrum_of_product,
    variants_of,
)

TOP = 10  # keys of the top-k mass
CENTRE = (0.5, 0.5)
_ENTRIES = 1 << 21  # of a portion of rows


@dataclass(frozen=True)
class Sharpness:
    """Means over queries with m keys each."""

    entropy: float  # H of the weights of a query, in nats
    normalised_entropy: float  # H / log m: 1 for equal weights, 0 for one key alone
    top_mass: float  # what the TOP keys with most weight have of all
    effective_tokens: float  # exp(H), the number of equal weights with this entropy
    gini: float  # 0 for equal weights, (m-1)/m for one key alone


_STATISTICS = tuple(field.name for field in fields(Sharpness))


def sharpness_of_rows(matrix: Tensor) -> Tensor:
    """The statistics of each row of ``(n, m)``, none all zero: ``(n, 5)`` in the order of :class:`Sharpness`.

    Of the absolute values, divided by their sum: with a convolution, weights may be negative and do not sum
    to 1.
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
    return Sharpness(*torch.cat(list(of_rows)).mean(0).tolist())


# float64 entries of the largest matrix at any time, 128 MiB: 4096 queries and keys.
LARGEST_MATRIX = 4096**2


@dataclass(frozen=True)
class Measures:
    """What to measure, and to draw."""

    heads: tuple[int, ...] | None = (
        None  # from 0, of layers that have them; None: all, drawn: the first
    )
    spectra: bool = True  # singular values too, which take by far the longest
    channels: int = 1  # of a head with a convolution, whose matrices are looked at
    windows: int = 4  # of a layer that attends in windows, whose singular values are looked at
    points: tuple[tuple[float, float], ...] = (CENTRE,)  # (x, y) of the queries drawn, 0 to 1
    drawn: int = 1  # of the images, which get maps and spectra; statistics are of all


@dataclass(frozen=True)
class HeadSpectrum:
    """The singular values of a head's matrix in one window; all numbers are from 0."""

    head: int
    window: int  # among the layer's windows of the head
    channel: int | None  # with a convolution, of the head
    spectrum: Spectrum


@dataclass(frozen=True)
class Measured:
    """A variant in a layer on an image."""

    variant: Variant
    is_own: bool  # the layer computes with it
    heads: dict[int, Sharpness]
    mean: Sharpness  # over the heads
    spectra: tuple[HeadSpectrum, ...]  # of heads, windows and channels

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(
            variant=self.variant.name,
            power=self.variant.power,
            convolution=self.variant.convolution,
            is_the_layers_own=self.is_own,
            mean=asdict(self.mean),
            heads={str(head): asdict(sharpness) for head, sharpness in self.heads.items()},
            spectra=[
                dict(
                    head=s.head,
                    window=s.window,
                    channel=s.channel,
                    shape=list(s.spectrum.shape),
                    rank=s.spectrum.rank,
                    short_of_full_rank=s.spectrum.full_rank - s.spectrum.rank,
                    rank_is_lower_bound=s.spectrum.is_lower_bound,
                    singular_values=[float(f"{value:.4g}") for value in s.spectrum.values],
                )
                for s in self.spectra
            ],
        )


@dataclass(frozen=True)
class LayerResult:
    """A layer on an image."""

    layer: str  # its name, STAGE.BLOCK
    path: str  # the module's name
    kind: str  # the module's class
    hw_shape: tuple[int, int]  # (H, W) of its map
    num_windows: int  # in which each head attends
    queries: int  # of the largest window, as the keys
    keys: int
    head_dim: int  # d, the bound of the rank of linear attention
    sampled: bool  # some queries only were looked at
    # The largest difference of what the matrices and what the layer give, as a part of the largest entry
    # of the output; None: too large to be compared.
    error: float | None
    variants: tuple[Measured, ...]  # from softmax on

    @property
    def bound(self) -> int:
        """min(N, d): no linear attention matrix has a higher rank.

        The mask of shifted windows cuts some of them into parts, to each of which it applies.
        """
        return min(self.queries, self.keys, self.head_dim)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        variants = [measured.record() for measured in self.variants]
        return vars(self) | dict(variants=variants, rank_bound_of_linear_attention=self.bound)


def measure_layer(call: LayerCall, measures: Measures) -> LayerResult:
    """Measure all variants of a layer, which has one of the heads; one matrix is in memory at a time."""
    parts = project(call.layer.module, call.tokens, call.hw_shape)
    n, m = (max(getattr(p, what).shape[1] for p in parts) for what in ("queries", "keys"))
    fits = n * m <= LARGEST_MATRIX
    error = None
    if fits:
        out = output_from_matrices(parts, len(call.tokens))
        largest = call.output.abs().max().clamp_min(1e-12)
        error = float((out - call.output.double()).abs().max() / largest)
    measured = [_measure_variant(parts, variant, measures) for variant in variants_of(parts[0])]
    return LayerResult(
        layer=call.layer.name,
        path=call.layer.path,
        kind=type(call.layer.module).__name__,
        hw_shape=call.hw_shape,
        num_windows=sum(len(p.tokens) for p in parts if 0 in p.heads),
        queries=n,
        keys=m,
        head_dim=parts[0].head_dim,
        sampled=not fits,
        error=error,
        variants=tuple(measured),
    )


def _measure_variant(parts: Sequence[Windows], variant: Variant, measures: Measures) -> Measured:
    rows: dict[int, list[Tensor]] = {}
    spectra = []
    generator = torch.Generator().manual_seed(0)  # of the sample, where a matrix would be too large
    seen: dict[int, int] = {}  # windows of a head in the parts before
    for part in parts:
        weights = Weights(part, variant)
        chosen = _spread(len(part.tokens), measures.windows) if measures.spectra else ()
        for position, head in enumerate(part.heads):
            if measures.heads is not None and head not in measures.heads:
                continue
            first = seen.get(head, 0)
            seen[head] = first + len(part.tokens)
            for window in range(len(part.tokens)):
                sample = _sample(part, window, generator)
                for channel in weights.channels(position, measures.channels):
                    matrix = weights.matrix(window, position, sample, channel)
                    real = matrix[part.tokens[window] >= 0] if sample is None else matrix
                    rows.setdefault(head, []).append(sharpness_of_rows(real))
                    if window in chosen:
                        factors = weights.factors(window, position) if channel is None else None
                        if factors is None:
                            found = spectrum(matrix, is_lower_bound=sample is not None)
                        else:
                            found = spectrum_of_product(*factors)
                        spectra.append(HeadSpectrum(head, first + window, channel, found))
    heads = {head: mean_sharpness(of_head) for head, of_head in sorted(rows.items())}
    everyone = mean_sharpness(torch.cat(of_head) for of_head in rows.values())
    is_own = variant == own_variant(parts[0])
    return Measured(variant, is_own, heads, everyone, tuple(spectra))


def _sample(part: Windows, window: int, generator: torch.Generator) -> Tensor | None:
    """The queries of a window to look at; None: all of them."""
    n, m = part.queries.shape[1], part.keys.shape[1]
    if n * m <= LARGEST_MATRIX:
        return None
    real = (part.tokens[window] >= 0).nonzero()[:, 0]
    sample = torch.randperm(len(real), generator=generator)[: max(LARGEST_MATRIX // m, 1)]
    return real[sample].sort().values


def _spread(total: int, count: int) -> set[int]:
    """``count`` of ``total``, evenly spaced."""
    count = min(total, count)
    return {(2 * i + 1) * total // (2 * count) for i in range(count)}


# The claim of the paper: in this order, entropy grows.
CLAIMED_ORDER = ("softmax", "focused linear", "plain linear")
_VERDICTS = {1: "holds", -1: "is reversed", 0: "is not decided"}


@dataclass(frozen=True)
class Estimate:
    """A mean over images, with half the width of its 95 % confidence interval by Student's t."""

    mean: float
    half_width: float  # infinite for one image
    images: int

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies below or above zero; else 0."""
        return 0 if self.half_width >= abs(self.mean) else (1 if self.mean > 0 else -1)

    def shown(self, form: str, form_of_width: str) -> str:
        """Both numbers, or the mean alone of one image."""
        width = "" if self.half_width == inf else f" ± {self.half_width:{form_of_width}}"
        return f"{self.mean:{form}}{width}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of a value of each image, with its confidence interval."""
    if len(values) < 2:
        return Estimate(values[0], inf, 1)
    half_width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Estimate(mean(values), float(half_width), len(values))


@dataclass(frozen=True)
class Step:
    """Two neighbours in :data:`CLAIMED_ORDER`; the claim is that the second has the higher entropy."""

    lower: str
    higher: str
    verdict: str  # "holds", "is reversed" or "is not decided", at 95 % confidence
    difference_of_normalised_entropy: Estimate  # higher - lower, image by image


@dataclass(frozen=True)
class LayerSummary:
    """A layer over all images."""

    layer: str
    sharpness: dict[str, dict[str, Estimate]]  # of each variant, of each statistic
    entropy_order: tuple[Step, ...]


def summarise(results: Iterable[LayerResult]) -> list[LayerSummary]:
    """Each layer over the images: the mean of its heads is one value of an image."""
    by_layer: dict[str, list[LayerResult]] = {}
    for result in results:
        by_layer.setdefault(result.layer, []).append(result)
    return [_summarise(layer, of_layer) for layer, of_layer in by_layer.items()]


def _summarise(layer: str, results: Sequence[LayerResult]) -> LayerSummary:
    values: dict[str, dict[str, list[float]]] = {}
    for result in results:
        for measured in result.variants:
            of_variant = values.setdefault(measured.variant.name, {s: [] for s in _STATISTICS})
            for name, of_images in of_variant.items():
                of_images.append(getattr(measured.mean, name))
    sharpness = {
        variant: {name: estimate(of_images) for name, of_images in of_variant.items()}
        for variant, of_variant in values.items()
    }
    order = []
    for lower, higher in pairwise(name for name in CLAIMED_ORDER if name in values):
        entropies = (values[name]["normalised_entropy"] for name in (higher, lower))
        difference = estimate(list(map(sub, *entropies)))
        order.append(Step(lower, higher, _VERDICTS[difference.sign], difference))
    return LayerSummary(layer, sharpness, tuple(order))


_COLUMNS = {
    "entropy": "entropy, nats",
    "normalised_entropy": "/ log N",
    "effective_tokens": "effective tokens",
    "top_mass": f"top {TOP} mass",
    "gini": "Gini",
}


def sharpness_table(summaries: Sequence[LayerSummary]) -> Table:
    """Means over images, heads and queries; ± half the 95 % confidence interval over images."""
    table = Table("layer", "weights", *_COLUMNS.values(), title="How sharp the weights are")
    for summary in summaries:
        for variant, values in summary.sharpness.items():
            shown = (values[name].shown(".3f", ".3f") for name in _COLUMNS)
            table.add_row(summary.layer, variant, *shown)
        table.add_section()
    return table


def rank_table(results: Sequence[LayerResult]) -> Table:
    """Ranks of each layer on an image, from the least to the largest of heads, windows and channels."""
    table = Table("layer", "weights", "matrix", "min(N, d)", "rank", title="Numerical rank")
    for result in results:
        for measured in result.variants:
            if measured.spectra:
                shape = " x ".join(map(str, measured.spectra[0].spectrum.shape))
                row = (measured.variant.name, shape, str(result.bound), _ranks(measured))
                table.add_row(result.layer, *row)
        table.add_section()
    return table


def order_lines(summaries: Sequence[LayerSummary]) -> list[str]:
    """Whether entropy grows from softmax over focused to plain linear attention, layer by layer."""
    lines = []
    for summary in summaries:
        for step in summary.entropy_order:
            difference = step.difference_of_normalised_entropy
            lines.append(
                f"layer {summary.layer}: entropy of {step.lower} < {step.higher} {step.verdict} "
                f"({difference.shown('+.2g', '.2g')} of log N, {difference.images} images)"
            )
    return lines


def _ranks(measured: Measured) -> str:
    ranks = [s.spectrum.rank for s in measured.spectra]
    least = "≥ " if any(s.spectrum.is_lower_bound for s in measured.spectra) else ""
    span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    return least + span
