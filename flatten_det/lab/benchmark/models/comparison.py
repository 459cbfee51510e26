"""What the cells say together: speed-ups, exponents, crossovers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..timing import paired_speedup
from .candidates import is_flatten, variant_of
from .curves import QUANTITIES, Crossover, Curve, find_crossover
from .result import Result


@dataclass(frozen=True)
class Comparison:
    """All results, and what they are compared with.

    Attributes:
        results: one for each candidate and setting.
        baseline: the candidate that speed-ups are over.
        fit_from: exponents are fitted from so many pixels on.
    """

    results: Sequence[Result]
    baseline: str
    fit_from: int

    @property
    def kinds(self) -> list[str]:
        """Mode, dtype and batch, in the order of their first results."""
        return list(dict.fromkeys(result.setting.kind for result in self.results))

    @property
    def names(self) -> list[str]:
        """Of the candidates."""
        return list(dict.fromkeys(result.name for result in self.results))

    def of(self, kind: str) -> list[Result]:
        """Results of one kind by ascending size; at each, candidates in their order."""
        chosen = [result for result in self.results if result.setting.kind == kind]
        return sorted(chosen, key=lambda result: (result.pixels, result.setting.size))

    def speedup(self, result: Result) -> float | None:
        """Over the baseline in the same rounds; None where either has no times."""
        for other in self.results:
            if other.name == self.baseline and other.setting == result.setting:
                if other.timing is None or result.timing is None:
                    return None
                return paired_speedup(other.timing, result.timing)
        return None

    def curve(self, kind: str, name: str, quantity: str) -> Curve:
        """One of :data:`~.curves.QUANTITIES` of one candidate."""
        return Curve.of([r for r in self.of(kind) if r.name == name], quantity)

    def exponent(self, kind: str, name: str, quantity: str) -> float | None:
        """See :meth:`~.curves.Curve.exponent`."""
        return self.curve(kind, name, quantity).exponent(self.fit_from)

    def crossovers(self, kind: str, quantity: str) -> dict[tuple[str, str], Crossover]:
        """Of each FLatten candidate with each that is none, as they are or both of one variant."""
        found = {}
        for ours in filter(is_flatten, self.names):
            for theirs in self.names:
                if is_flatten(theirs) or variant_of(ours) != variant_of(theirs):
                    continue
                crossover = find_crossover(
                    self.curve(kind, ours, quantity), self.curve(kind, theirs, quantity)
                )
                if crossover is not None:
                    found[ours, theirs] = crossover
        return found

    def row(self, result: Result) -> dict[str, object]:
        """Flat, for a CSV file; None where there is nothing."""
        setting, timing = result.setting, result.timing
        first, third = timing.quartiles if timing else (None, None)
        return {
            "height": setting.size.height,
            "width": setting.size.width,
            "pixels": result.pixels,
            "mode": setting.mode,
            "dtype": setting.dtype,
            "amp": setting.amp,
            "batch": setting.batch,
            "model": result.name,
            "median_s": result.seconds,
            "first_quartile_s": first,
            "third_quartile_s": third,
            "host_s": result.host_seconds,
            "speedup": self.speedup(result),
            "images_per_second": result.images_per_second,
            "megapixels_per_second": result.megapixels_per_second,
            "peak_bytes": result.peak_bytes,
            "multiply_adds": result.macs,
            "parameters": result.cost.parameters,
            "note": result.note,
        }

    def exponents_record(self) -> list[dict[str, object]]:
        """All exponents, for a JSON file."""
        return [
            {
                "kind": kind,
                "model": name,
                "quantity": quantity,
                "exponent": self.exponent(kind, name, quantity),
                "from_pixels": self.fit_from,
            }
            for kind in self.kinds
            for name in self.names
            for quantity in QUANTITIES
        ]

    def crossovers_record(self) -> list[dict[str, object]]:
        """All crossovers, for a JSON file."""
        return [
            {
                "kind": kind,
                "quantity": quantity,
                "model": ours,
                "below": theirs,
                **asdict(crossover),
            }
            for kind in self.kinds
            for quantity in QUANTITIES
            for (ours, theirs), crossover in self.crossovers(kind, quantity).items()
        ]
