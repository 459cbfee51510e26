"""How models grow with the size of the image: exponents, and where one falls below another.

A curve is a dict of one quantity of one candidate: pixels of an image -> value, ascending, both positive.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

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


def curve_of(results: Iterable[Result], quantity: str) -> dict[int, float]:
    """The curve of results of one candidate that differ in size only; sizes without a value are left out.

    Of several sizes with as many pixels, such as 512x2048 and 1024x1024, the mean counts.
    """
    values: dict[int, list[float]] = {}
    for result in results:
        if value := QUANTITIES[quantity](result):
            values.setdefault(result.setting.case.pixels, []).append(value)
    return {pixels: statistics.fmean(values[pixels]) for pixels in sorted(values)}


def fit_exponent(curve: dict[int, float], least_pixels: int) -> float | None:
    """p of the best fit of c * pixels^p in logarithms; 1 is linear; None with fewer than two points.

    Images of fewer than ``least_pixels`` do not count: there, what is constant weighs too much.
    """
    chosen = {pixels: value for pixels, value in curve.items() if pixels >= least_pixels}
    if len(chosen) < 2:
        return None
    pixels, values = map(log, chosen), map(log, chosen.values())
    return statistics.linear_regression(list(pixels), list(values)).slope


class Crossover(NamedTuple):
    """From where on one curve lies below another."""

    pixels: float | None  # of the image, interpolated in logarithms; None: at none of the sizes
    value: float | None  # of both curves there
    verdict: str  # "from 0.81 Mpx", "at all sizes" or "at no size"


def find_crossover(ours: dict[int, float], theirs: dict[int, float]) -> Crossover | None:
    """Where the curve ``ours`` falls below ``theirs`` and stays there; None with no common size."""
    common = [pixels for pixels in ours if pixels in theirs]
    if not common:
        return None
    excess = [log(ours[pixels] / theirs[pixels]) for pixels in common]
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
    value = between(ours[common[last]], ours[common[last + 1]])
    return Crossover(pixels, value, f"from {pixels / 1e6:.3g} Mpx")


@dataclass(frozen=True)
class Growth(Comparison):
    """Results of models, over sizes; exponents are fitted from ``fit_from`` pixels on."""

    fit_from: int

    def of(self, kind: str) -> list[Result]:
        """Results of one kind by ascending size; at each, candidates in their order."""
        return sorted(super().of(kind), key=lambda r: (r.setting.case.pixels, r.setting.case))

    def curve(self, kind: str, name: str, quantity: str) -> dict[int, float]:
        """One of :data:`QUANTITIES` of one candidate."""
        return curve_of([r for r in self.of(kind) if r.name == name], quantity)

    def exponent(self, kind: str, name: str, quantity: str) -> float | None:
        """See :func:`fit_exponent`."""
        return fit_exponent(self.curve(kind, name, quantity), self.fit_from)

    def crossovers(self, kind: str, quantity: str) -> dict[tuple[str, str], Crossover]:
        """Of each FLatten candidate with each that is none, as they are or both of one variant."""
        curves = {name: self.curve(kind, name, quantity) for name in self.names}
        found = {
            (ours, theirs): find_crossover(curves[ours], curves[theirs])
            for ours in filter(is_flatten, self.names)
            for theirs in self.names
            if not is_flatten(theirs) and _variant_of(ours) == _variant_of(theirs)
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
            {"kind": kind, "quantity": quantity, "model": ours, "below": theirs}
            | crossover._asdict()
            for kind in self.kinds
            for quantity in QUANTITIES
            for (ours, theirs), crossover in self.crossovers(kind, quantity).items()
        ]
