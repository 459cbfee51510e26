"""Everything that is measured of one attention layer on one image."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .capture import LayerCall
from .convolution import typical_channels
from .matrices import Variant, Weights, own_variant, variants_of
from .projections import project
from .reconstruction import output_from_matrices
from .spectrum import Spectrum, spectrum, spectrum_of_product
from .statistics import Sharpness, mean_sharpness, sharpness_of_rows
from .windows import Windows

# float64 entries of the largest matrix at any time, 128 MiB: 4096 queries and keys.
LARGEST_MATRIX = 4096**2


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        heads: of each layer, from 0; those that it has not are left out. None: all.
        spectra: singular values too, which take by far the longest.
        channels: of a head with a convolution, whose matrices are looked at.
        windows: of a layer that attends in windows, whose singular values are looked at.
        seed: of the sample of queries, where a matrix would be too large.
    """

    heads: tuple[int, ...] | None = None
    spectra: bool = True
    channels: int = 1
    windows: int = 4
    seed: int = 0


@dataclass(frozen=True)
class HeadSpectrum:
    """The singular values of a head's matrix in one window.

    Attributes:
        head: from 0.
        window: from 0, among the layer's windows of the head.
        channel: with a convolution, of the head.
        spectrum: the singular values.
    """

    head: int
    window: int
    channel: int | None
    spectrum: Spectrum


@dataclass(frozen=True)
class Measured:
    """A variant in a layer on an image.

    Attributes:
        variant: which weights.
        is_own: whether the layer computes with them.
        heads: sharpness by head.
        mean: over the heads.
        spectra: of heads, windows and channels.
    """

    variant: Variant
    is_own: bool
    heads: dict[int, Sharpness]
    mean: Sharpness
    spectra: tuple[HeadSpectrum, ...]

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
    """A layer on an image.

    Attributes:
        layer: its name, ``STAGE.BLOCK``.
        path: the module's name.
        kind: the module's class.
        hw_shape: ``(H, W)`` of its map.
        num_windows: in which each head attends.
        queries, keys: of the largest window.
        head_dim: d, the bound of the rank of linear attention.
        sampled: some queries only were looked at.
        error: the largest difference of what the matrices and what the layer give, as a part of the
            largest entry of the output; None: too large to be compared.
        variants: from softmax on.
    """

    layer: str
    path: str
    kind: str
    hw_shape: tuple[int, int]
    num_windows: int
    queries: int
    keys: int
    head_dim: int
    sampled: bool
    error: float | None
    variants: tuple[Measured, ...]

    @property
    def bound(self) -> int:
        """min(N, d): no linear attention matrix has a higher rank.

        The mask of shifted windows cuts some of them into parts, to each of which it applies.
        """
        return min(self.queries, self.keys, self.head_dim)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["variants"] = [measured.record() for measured in self.variants]
        return values | dict(rank_bound_of_linear_attention=self.bound)


def measure_layer(call: LayerCall, plan: Plan) -> LayerResult:
    """Measure all variants of a layer on an image; one matrix is in memory at a time.

    Args:
        call: of the layer, which has one of the plan's heads.
        plan: what to measure.
    """
    parts = project(call.layer.module, call.tokens, call.hw_shape)
    n, m = (max(getattr(p, what).shape[1] for p in parts) for what in ("queries", "keys"))
    fits = n * m <= LARGEST_MATRIX
    error = None
    if fits:
        out = output_from_matrices(parts, len(call.tokens))
        largest = call.output.abs().max().clamp_min(1e-12)
        error = float((out - call.output.double()).abs().max() / largest)
    measured = [_measure_variant(parts, variant, plan) for variant in variants_of(parts[0])]
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


def _measure_variant(parts: Sequence[Windows], variant: Variant, plan: Plan) -> Measured:
    rows: dict[int, list[Tensor]] = {}
    spectra = []
    generator = torch.Generator().manual_seed(plan.seed)
    seen: dict[int, int] = {}  # windows of a head in the parts before
    for part in parts:
        weights = Weights(part, variant)
        chosen = _spread(len(part.tokens), plan.windows) if plan.spectra else ()
        for position, head in enumerate(part.heads):
            if plan.heads is not None and head not in plan.heads:
                continue
            first = seen.get(head, 0)
            seen[head] = first + len(part.tokens)
            for window in range(len(part.tokens)):
                wanted = _queries(part, window, generator)
                everything = wanted is None
                inside = part.tokens[window] >= 0
                for channel, matrix in _matrices(weights, window, position, wanted, plan):
                    real = matrix if wanted is not None else matrix[inside]
                    rows.setdefault(head, []).append(sharpness_of_rows(real))
                    if window in chosen:
                        factors = weights.factors(window, position) if channel is None else None
                        found = (
                            spectrum(matrix, not everything)
                            if factors is None
                            else spectrum_of_product(*factors)
                        )
                        spectra.append(HeadSpectrum(head, first + window, channel, found))
    heads = {head: mean_sharpness(of_head) for head, of_head in sorted(rows.items())}
    everyone = mean_sharpness(torch.cat(of_head) for of_head in rows.values())
    is_own = variant == own_variant(parts[0])
    return Measured(variant, is_own, heads, everyone, tuple(spectra))


def _matrices(
    weights: Weights, window: int, position: int, rows: Tensor | None, plan: Plan
) -> Iterator[tuple[int | None, Tensor]]:
    """The matrix of a head, with a convolution one for each channel that is looked at."""
    if not weights.variant.convolution:
        yield None, weights.matrix(window, position, rows)
        return
    for channel in typical_channels(weights.windows, position, plan.channels):
        yield channel, weights.with_convolution(window, position, channel, rows)


def _queries(part: Windows, window: int, generator: torch.Generator) -> Tensor | None:
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
