"""How a quantity grows with the size of the image, and where one curve falls below another."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp, log

from .result import Result

# What is drawn against the pixels of an image.
QUANTITIES: dict[str, Callable[[Result], float | None]] = {
    "time": lambda result: result.seconds,
    "peak memory": lambda result: result.peak_bytes,
    "multiply-adds": lambda result: result.macs,
}
EVERYWHERE, NOWHERE = "at all sizes", "at no size"


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
            value = QUANTITIES[quantity](result)
            if value:
                values.setdefault(result.pixels, []).append(value)
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
    """Where ``ours`` falls below ``theirs`` and stays there, over the sizes that both have.

    Returns:
        None with no common size.
    """
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
