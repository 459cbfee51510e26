"""All candidates in all settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ....errors import describe_failure
from ..memory import Peak, peak_in_fresh_process, peak_on_cuda
from ..timing import alternate, clock_of
from .candidates import OTHER_FUNCTIONS, SDPA, Work, prepare
from .cases import Setting
from .check import Check, Checker
from .inputs import make_inputs
from .result import Result

_TRIAL_TOKENS = 4096
Advance = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        candidates: see :func:`~.candidates.prepare`.
        baseline: one of them, which speed-ups are over.
        rounds: in each, every candidate runs once.
        warmup: calls of each before the first round.
        memory: measure peak memory.
        max_seconds: leave softmax attention out where a call would take longer.
        bandwidth: of a copy, bytes per second.
    """

    candidates: Sequence[str]
    baseline: str
    rounds: int
    warmup: int
    memory: bool
    max_seconds: float
    bandwidth: float

    @property
    def steps(self) -> int:
        """How often :func:`benchmark_setting` says that it has advanced."""
        return 2 * len(self.candidates) + 1


def benchmark_setting(setting: Setting, plan: Plan, advance: Advance) -> list[Result]:
    """Measure all candidates in one setting.

    What fails, or takes too much memory, is recorded. On the CPU memory comes first, in processes of its
    own: what the system kills there is not run here.

    Args:
        setting: shape and the rest.
        plan: how to measure.
        advance: called with what was done, after each step.
    """
    torch.compiler.reset()
    on_cuda = torch.device(setting.device).type == "cuda"
    failures: dict[str, str] = {}
    peaks: dict[str, Peak] = {}
    checks: dict[str, Check] = {}
    for candidate in plan.candidates:
        reason = _too_slow(setting, plan.max_seconds) if candidate == SDPA else None
        if reason is not None:
            failures[candidate] = reason
        elif plan.memory and not on_cuda:
            peak = peak_in_fresh_process(
                build_work, setting, candidate, threads=torch.get_num_threads()
            )
            peaks[candidate] = peak
            if peak.is_out_of_memory:
                failures[candidate] = peak.failure
        advance(f"{candidate}: memory")

    checker = _checker(setting)
    for candidate in plan.candidates:
        if candidate not in failures and candidate not in OTHER_FUNCTIONS:
            checks[candidate] = checker(candidate)
        advance(f"{candidate}: check")
    del checker
    _release()

    calls: dict[str, Work] = {}
    inputs = make_inputs(setting)
    for candidate in plan.candidates:
        if candidate not in failures:
            try:
                calls[candidate] = prepare(inputs, candidate)
            except Exception as error:
                failures[candidate] = describe_failure(error)
    clock = clock_of(torch.device(setting.device))
    timings, failed = alternate(calls, plan.rounds, plan.warmup, clock)
    failures |= failed
    if plan.memory and on_cuda:
        for candidate in timings:
            peaks[candidate] = peak_on_cuda(calls[candidate], torch.device(setting.device))
    advance("times")
    calls.clear()
    _release()
    return [
        Result(
            setting,
            candidate,
            timings.get(candidate),
            timings.get(plan.baseline),
            checks.get(candidate),
            peaks.get(candidate),
            plan.bandwidth,
            failures.get(candidate),
        )
        for candidate in plan.candidates
    ]


def build_work(setting: Setting, candidate: str) -> Work:
    """A candidate with inputs of its own."""
    return prepare(make_inputs(setting), candidate)


def _checker(setting: Setting) -> Callable[[str], Check]:
    try:
        return Checker(setting)
    except Exception as error:
        # Nothing to compare with: then nothing has passed.
        failure = Check(None, None, False, f"the reference failed: {describe_failure(error)}")
        return lambda candidate: failure


def _too_slow(setting: Setting, max_seconds: float) -> str | None:
    """Why softmax attention, quadratic in the tokens, is not worth the wait; None if it is."""
    case = setting.case
    height = min(max(_TRIAL_TOKENS // case.width, 1), case.height)
    trial = replace(setting, case=replace(case, height=height))
    clock = clock_of(torch.device(setting.device))
    try:
        call = build_work(trial, SDPA)
        clock(call)
        seconds = clock(call) * (case.height / height) ** 2
    except Exception as error:
        return describe_failure(error)
    if seconds <= max_seconds:
        return None
    return f"about {seconds:.0f} s per call, more than --max-seconds {max_seconds:g}"


def _release() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
