"""Cells that are not worth the wait, told from what smaller images took."""

from collections.abc import Iterable

from ..memory import OUT_OF_MEMORY
from .result import Result

TOO_SLOW = "too slow"


def reason_to_skip(
    result: Result, earlier: Iterable[Result], max_seconds: float | None
) -> str | None:
    """Why a cell is left out; None if it is to be measured.

    The time is estimated from the next smaller size of the same model that has one, by the multiply-adds,
    or by the pixels where those are unknown.

    Args:
        result: the cell, not measured yet.
        earlier: cells measured before.
        max_seconds: the most that a call may take; None for any time.
    """
    smaller = sorted((r for r in earlier if _same_but_smaller(r, result)), key=lambda r: r.pixels)
    for other in smaller:
        for hopeless in (OUT_OF_MEMORY, TOO_SLOW):
            if other.failure is not None and other.failure.startswith(hopeless):
                return f"{hopeless}: so it was at {other.setting.size} already"
    timed = [other for other in smaller if other.timing is not None]
    if not timed or max_seconds is None:
        return None
    seconds = timed[-1].seconds * _ratio(result, timed[-1])
    if seconds <= max_seconds:
        return None
    return f"{TOO_SLOW}: about {seconds:.0f} s per call, more than --max-seconds {max_seconds:g}"


def _same_but_smaller(one: Result, other: Result) -> bool:
    return (
        one.name == other.name
        and one.setting.kind == other.setting.kind
        and one.pixels < other.pixels
    )


def _ratio(larger: Result, smaller: Result) -> float:
    if larger.macs and smaller.macs:
        return larger.macs / smaller.macs
    return larger.pixels / smaller.pixels
