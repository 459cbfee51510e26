"""All candidates in one setting."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ....errors import describe_failure
from ..memory import LINUX_ONLY, available_memory, peak_in_fresh_process, peak_on_cuda
from ..timing import Call, alternate, clock_of, host_seconds
from .candidates import Candidate
from .cost import count_cost
from .limits import reason_to_skip
from .result import Result
from .settings import Setting
from .work import build_work

Advance = Callable[[str, int], object]


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        candidates: what to compare.
        rounds: in each, every candidate runs once.
        warmup: calls of each before the first round.
        memory: measure peak memory.
        max_seconds: leave out what would take longer a call; None: nothing.
        max_memory: bytes that a call may take beyond weights and images; on CUDA, that torch may take in
            all. None: what is free.
    """

    candidates: Sequence[Candidate]
    rounds: int
    warmup: int
    memory: bool
    max_seconds: float | None
    max_memory: int | None = None

    @property
    def steps(self) -> int:
        """How far :func:`benchmark_setting` says that it has advanced."""
        return len(self.candidates) * (2 + self.warmup + self.rounds)

    def record(self) -> dict[str, object]:
        """For a JSON file, under the names of the tool's options."""
        return {
            "models": list(dict.fromkeys(candidate.model for candidate in self.candidates)),
            "compile": any(candidate.compiled for candidate in self.candidates),
            "cuda-graphs": any(candidate.graphs for candidate in self.candidates),
            "fuse": all(candidate.fused for candidate in self.candidates),
            "rounds": self.rounds,
            "warmup": self.warmup,
            "memory": self.memory,
            "max-seconds": self.max_seconds,
            "max-memory": self.max_memory,
        }


def benchmark_setting(
    setting: Setting, plan: Plan, earlier: Sequence[Result], advance: Advance
) -> list[Result]:
    """Measure all candidates in one setting.

    What fails, takes too much memory or would take too long is recorded. On the CPU memory comes first,
    in processes of its own: what fails or is killed there is not run here.

    Args:
        setting: size and the rest.
        plan: how to measure.
        earlier: what was measured before, to tell what would take too long.
        advance: called with what is done and a number of steps, after these.

    Returns:
        One result for each candidate, in their order.
    """
    torch.compiler.reset()
    device = torch.device(setting.device)
    if device.type == "cuda" and plan.max_memory is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(plan.max_memory / total, 1.0), device)
    results: dict[str, Result] = {}
    for candidate in plan.candidates:
        result = Result(setting, candidate.name, count_cost(candidate.model, setting.size))
        failure = reason_to_skip(result, earlier, plan.max_seconds)
        results[candidate.name] = replace(result, failure=failure)
        advance(f"{candidate.name}: counted", 1)
        if plan.memory and device.type == "cpu" and failure is None:
            peak = peak_in_fresh_process(
                build_work,
                setting,
                candidate,
                threads=torch.get_num_threads(),
                most_bytes=plan.max_memory or available_memory(),
            )
            failure = None if peak.failure == LINUX_ONLY else peak.failure
            results[candidate.name] = replace(result, peak=peak, failure=failure)
        advance(f"{candidate.name}: memory", 1)

    calls: dict[str, Call] = {}
    for candidate in plan.candidates:
        if results[candidate.name].failure is None:
            try:
                calls[candidate.name] = build_work(setting, candidate)
            except Exception as error:
                failure = describe_failure(error)
                results[candidate.name] = replace(results[candidate.name], failure=failure)
    steps = len(plan.candidates) * (plan.warmup + plan.rounds)
    clock = clock_of(device)

    def telling_clock(call: Call) -> float:
        nonlocal steps
        seconds = clock(call)
        steps -= 1
        advance("times", 1)
        return seconds

    timings, failures = alternate(calls, plan.rounds, plan.warmup, telling_clock)
    graphs = {candidate.name for candidate in plan.candidates if candidate.graphs}
    for name in calls:
        peak, host = results[name].peak, None
        if device.type == "cuda" and name in timings:
            host = host_seconds(calls[name], device, plan.rounds)
            # A graph has had its memory since its capture.
            if plan.memory and name not in graphs:
                peak = peak_on_cuda(calls[name], device)
        results[name] = replace(
            results[name],
            timing=timings.get(name),
            host_seconds=host,
            peak=peak,
            failure=failures.get(name),
        )
    advance("times", steps)
    calls.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return list(results.values())
