"""Means over images, with 95 % confidence intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import inf, sqrt
from statistics import mean, stdev
from typing import Any

from scipy import stats

from .measure import LayerResult
from .statistics import Sharpness

# The claim of the paper: in this order, entropy grows.
CLAIMED_ORDER = ("softmax", "focused linear", "plain linear")


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        mean: of the images.
        half_width: of the 95 % confidence interval by Student's t; infinite for one image.
        images: how many there are.
    """

    mean: float
    half_width: float
    images: int

    @property
    def sign(self) -> int:
        """-1 or 1 where the interval lies below or above zero; else 0."""
        return 0 if self.half_width >= abs(self.mean) else (1 if self.mean > 0 else -1)

    def record(self) -> dict[str, Any]:
        """For JSON, which knows no infinity."""
        return asdict(self) | dict(half_width=None if self.half_width == inf else self.half_width)


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of a value of each image, with its confidence interval."""
    if len(values) < 2:
        return Estimate(values[0], inf, 1)
    t = float(stats.t.ppf(0.975, len(values) - 1))
    return Estimate(mean(values), t * stdev(values) / sqrt(len(values)), len(values))


@dataclass(frozen=True)
class Step:
    """Two neighbours in :data:`CLAIMED_ORDER`.

    Attributes:
        lower, higher: the variants; the claim is that the second has the higher entropy.
        difference: of their normalised entropies, higher - lower, image by image.
    """

    lower: str
    higher: str
    difference: Estimate

    @property
    def verdict(self) -> str:
        """``holds``, ``is reversed`` or ``is not decided``, at 95 % confidence."""
        return {1: "holds", -1: "is reversed", 0: "is not decided"}[self.difference.sign]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        values = dict(lower=self.lower, higher=self.higher, verdict=self.verdict)
        return values | dict(difference_of_normalised_entropy=self.difference.record())


@dataclass(frozen=True)
class LayerSummary:
    """A layer over all images.

    Attributes:
        layer: its name.
        sharpness: of each variant, the estimate of each statistic.
        order: of their entropies.
    """

    layer: str
    sharpness: dict[str, dict[str, Estimate]]
    order: tuple[Step, ...]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(
            layer=self.layer,
            sharpness={
                variant: {name: value.record() for name, value in values.items()}
                for variant, values in self.sharpness.items()
            },
            entropy_order=[step.record() for step in self.order],
        )


def summarise(results: Iterable[LayerResult]) -> list[LayerSummary]:
    """Each layer over the images: the mean of its heads is one value of an image."""
    by_layer: dict[str, list[LayerResult]] = {}
    for result in results:
        by_layer.setdefault(result.layer, []).append(result)
    return [_summarise(layer, of_layer) for layer, of_layer in by_layer.items()]


def _summarise(layer: str, results: Sequence[LayerResult]) -> LayerSummary:
    values: dict[str, list[Sharpness]] = {}
    for result in results:
        for measured in result.variants:
            values.setdefault(measured.variant.name, []).append(measured.mean)
    sharpness = {
        variant: {
            field.name: estimate([getattr(s, field.name) for s in of_variant])
            for field in fields(Sharpness)
        }
        for variant, of_variant in values.items()
    }
    present = [variant for variant in CLAIMED_ORDER if variant in values]
    order = tuple(
        Step(lower, higher, estimate(_differences(values[lower], values[higher])))
        for lower, higher in pairwise(present)
    )
    return LayerSummary(layer, sharpness, order)


def _differences(lower: Sequence[Sharpness], higher: Sequence[Sharpness]) -> list[float]:
    return [b.normalised_entropy - a.normalised_entropy for a, b in zip(lower, higher, strict=True)]
