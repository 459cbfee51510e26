"""Times of several candidates, taken in turns so that a drift of the machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ...errors import describe_failure

Call = Callable[[], object]
Clock = Callable[[Call], float]


@dataclass(frozen=True)
class Timing:
    """Times of one candidate.

    Attributes:
        seconds: one for each round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third, in seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return first, third


def paired_speedup(baseline: Timing, candidate: Timing) -> float:
    """The median over the rounds of baseline time / candidate time of the same round.

    Unlike the ratio of two medians it does not mix rounds, between which a shared machine changes.
    """
    pairs = zip(baseline.seconds, candidate.seconds, strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def alternate(
    calls: dict[str, Call], rounds: int, warmup: int, clock: Clock
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Time candidates in rounds; in each, every candidate runs once.

    The order rotates from round to round, so that no candidate always follows the same one.

    Args:
        calls: what to time, by name.
        rounds: at least 1.
        warmup: calls of each candidate before the first round.
        clock: see :func:`clock_of`.

    Returns:
        Times by name, and what went wrong by name. A candidate is in exactly one of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    failures: dict[str, str] = {}

    def run(name: str, record: list[float]) -> None:
        try:
            record.append(clock(calls[name]))
        except Exception as error:
            failures[name] = describe_failure(error)

    for name in calls:
        for _ in range(warmup):
            if name not in failures:
                run(name, [])
    for number in range(rounds):
        for name in _rotated(list(calls), number):
            if name not in failures:
                run(name, seconds[name])
    timings = {name: Timing(tuple(s)) for name, s in seconds.items() if name not in failures}
    return timings, failures


def _rotated(names: list[str], number: int) -> Iterable[str]:
    start = number % max(len(names), 1)
    return names[start:] + names[:start]


def clock_of(device: torch.device) -> Clock:
    """What takes the time of a call on this device, in seconds."""
    return _cuda_seconds if device.type == "cuda" else _wall_seconds


def host_seconds(call: Call, device: torch.device, rounds: int) -> float:
    """The median time until a call has launched all that a GPU is to do, which waits for it idly."""
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize(device)
        seconds.append(_wall_seconds(call))
    return statistics.median(seconds)


def _wall_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cuda_seconds(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
