"""How models grow with the size of the image: exponents, and where one falls below another."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from math import exp, log

from .run import Comparison, Result

# What is drawn against the pixels of an image.
QUANTITIES: dict[str, Callable[[Result], float | None]] = {
    "time": lambda result: result.seconds,
    "peak memory": lambda result: result.peak_bytes,
    "multiply-adds": lambda result: result.cost.macs,
}
EVERYWHERE, NOWHERE = "at all sizes", "at no size"
# What tells a candidate from the one of its model as it is.
COMPILED, GRAPHS = VARIANTS = (" compiled", " graphs")


def is_flatten(name: str) -> bool:
    """Whether a candidate of this name has focused linear attention; the zoo's names say so."""
    return "flatten" in name


def _variant_of(name: str) -> str:
    return next((variant for variant in VARIANTS if name.endswith(variant)), "")


@dataclass(frozen=True)
class Curve:
    """One quantity of one candidate, over sizes.

    Attributes:
        points: pixels of an image -> value, ascending; both are positive.
    """

    points: dict[int, float]

    @classmethod
    def of(cls, results: Iterable[Result], quantity: str) -> "Curve":
        """From results of one candidate that differ in size only; sizes without a value are left out.

        Of several sizes with as many pixels, such as 512x2048 and 1024x1024, the mean counts.
        """
        values: dict[int, list[float]] = {}
        for result in results:
            if value := QUANTITIES[quantity](result):
                values.setdefault(result.setting.case.pixels, []).append(value)
        return cls({pixels: statistics.fmean(values[pixels]) for pixels in sorted(values)})

    def exponent(self, least_pixels: int) -> float | None:
        """p of the best fit of c * pixels^p in logarithms; 1 is linear.

        Args:
            least_pixels: smaller images do not count: there, what is constant weighs too much.

        Returns:
            None with fewer than two points.
        """
        chosen = {pixels: value for pixels, value in self.points.items() if pixels >= least_pixels}
        if len(chosen) < 2:
            return None
        return statistics.linear_regression(
            [log(pixels) for pixels in chosen], [log(value) for value in chosen.values()]
        ).slope


@dataclass(frozen=True)
class Crossover:
    """From where on one curve lies below another.

    Attributes:
        pixels: of the image, interpolated in logarithms; None if there is no such point among the sizes.
        value: of both curves there.
        verdict: ``'from 0.81 Mpx'``, ``'at all sizes'`` or ``'at no size'``.
    """

    pixels: float | None
    value: float | None
    verdict: str


def find_crossover(ours: Curve, theirs: Curve) -> Crossover | None:
    """Where ``ours`` falls below ``theirs`` and stays there; None with no common size."""
    common = [pixels for pixels in ours.points if pixels in theirs.points]
    if not common:
        return None
    excess = [log(ours.points[pixels] / theirs.points[pixels]) for pixels in common]
    above = [index for index, value in enumerate(excess) if value >= 0]
    if not above:
        return Crossover(None, None, EVERYWHERE)
    last = above[-1]
    if last == len(common) - 1:
        return Crossover(None, None, NOWHERE)
    share = excess[last] / (excess[last] - excess[last + 1])

    def between(start: float, end: float) -> float:
        return exp((1 - share) * log(start) + share * log(end))

    pixels = between(common[last], common[last + 1])
    value = between(ours.points[common[last]], ours.points[common[last + 1]])
    return Crossover(pixels, value, f"from {pixels / 1e6:.3g} Mpx")


@dataclass(frozen=True)
class Growth(Comparison):
    """Results of models, over sizes.

    Attributes:
        fit_from: exponents are fitted from so many pixels on.
    """

    fit_from: int

    def of(self, kind: str) -> list[Result]:
        """Results of one kind by ascending size; at each, candidates in their order."""
        return sorted(super().of(kind), key=lambda r: (r.setting.case.pixels, r.setting.case))

    def curve(self, kind: str, name: str, quantity: str) -> Curve:
        """One of :data:`QUANTITIES` of one candidate."""
        return Curve.of([r for r in self.of(kind) if r.name == name], quantity)

    def exponent(self, kind: str, name: str, quantity: str) -> float | None:
        """See :meth:`Curve.exponent`."""
        return self.curve(kind, name, quantity).exponent(self.fit_from)

    def crossovers(self, kind: str, quantity: str) -> dict[tuple[str, str], Crossover]:
        """Of each FLatten candidate with each that is none, as they are or both of one variant."""
        pairs = [
            (ours, theirs)
            for ours in filter(is_flatten, self.names)
            for theirs in self.names
            if not is_flatten(theirs) and _variant_of(ours) == _variant_of(theirs)
        ]
        found = {
            pair: find_crossover(*(self.curve(kind, name, quantity) for name in pair))
            for pair in pairs
        }
        return {pair: crossover for pair, crossover in found.items() if crossover is not None}

    def exponents_record(self) -> list[dict[str, object]]:
        """All exponents, for a JSON file."""
        return [
            {"kind": kind, "model": name, "quantity": quantity}
            | {"exponent": self.exponent(kind, name, quantity), "from_pixels": self.fit_from}
            for kind in self.kinds
            for name in self.names
            for quantity in QUANTITIES
        ]

    def crossovers_record(self) -> list[dict[str, object]]:
        """All crossovers, for a JSON file."""
        return [
            {"kind": kind, "quantity": quantity, "model": ours, "below": theirs} | asdict(crossover)
            for kind in self.kinds
            for quantity in QUANTITIES
            for (ours, theirs), crossover in self.crossovers(kind, quantity).items()
        ]
