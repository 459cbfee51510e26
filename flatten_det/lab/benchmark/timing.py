"""Times of several candidates, taken in turns so that a drift of the machine hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Hashable, Sequence

import torch

from ...errors import describe_failure

Call = Callable[[], object]
Clock = Callable[[Call], float]


def paired_speedup(baseline: Sequence[float], candidate: Sequence[float]) -> float:
    """The median over the rounds of baseline time / candidate time of the same round.

    Unlike the ratio of two medians it does not mix rounds, between which a shared machine changes.
    """
    return statistics.median(b / c for b, c in zip(baseline, candidate, strict=True))


def alternate(
    calls: dict[Hashable, Call], rounds: int, warmup: int, clock: Clock
) -> tuple[dict[Hashable, tuple[float, ...]], dict[Hashable, str]]:
    """Time candidates in rounds; in each, every candidate runs once, after ``warmup`` calls of each.

    The order rotates from round to round, so that no candidate always follows the same one. Returns seconds
    of the rounds by name, and what went wrong by name; a candidate is in one of them.
    """
    names = list(calls)
    seconds: dict[Hashable, list[float]] = {name: [] for name in names}
    failures: dict[Hashable, str] = {}

    def run(name: Hashable, record: list[float]) -> None:
        try:
            record.append(clock(calls[name]))
        except Exception as error:
            failures[name] = describe_failure(error)

    for name in names:
        for _ in range(warmup):
            if name not in failures:
                run(name, [])
    for number in range(rounds):
        start = number % max(len(calls), 1)
        for name in names[start:] + names[:start]:
            if name not in failures:
                run(name, seconds[name])
    return {name: tuple(s) for name, s in seconds.items() if name not in failures}, failures


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


# Far larger than any cache.
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**28}


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy of a large tensor, each byte counted as read and as written.

    The copy goes to memory that was touched before, so that a CPU has no pages to provide.
    """
    size = COPIED_BYTES[device.type]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    times, _ = alternate({"copy": lambda: target.copy_(source)}, 10, 2, clock_of(device))
    return 2 * size / statistics.median(times["copy"])
