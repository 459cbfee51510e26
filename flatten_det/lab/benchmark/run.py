"""All candidates of a kind in the same settings: memory, checks, and times in alternating rounds."""

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...cli import progress_bar
from ...errors import describe_failure
from .machine import DTYPES
from .memory import LINUX_ONLY, Peak, available_memory, peak_in_fresh_process, peak_on_cuda
from .timing import Call, alternate, clock_of, host_seconds, paired_speedup

# Whether there is a backward pass.
_MODES = {"inference": False, "training": True, "forward": False, "forward+backward": True}


@dataclass(frozen=True)
class Setting:
    """All that candidates have in common; ValueError for another mode or dtype."""

    case: Any  # images of a :class:`~.sources.Size`, or a layer's :class:`~.attention.Case`
    mode: str = "inference"  # or "training" of a model; of a layer "forward" or "forward+backward"
    dtype: str = "fp32"  # key of DTYPES
    amp: bool = False  # parameters in float32, the computation under autocast to `dtype`
    batch: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.mode not in _MODES or self.dtype not in DTYPES:
            raise ValueError(f"no such setting: {self.mode}, {self.dtype}")

    @property
    def training(self) -> bool:
        return _MODES[self.mode]

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.float32 if self.amp else DTYPES[self.dtype]

    @property
    def kind(self) -> str:
        """What a table or a column of panels has in common, in words."""
        return self.case.kind_of(self, f"{self.mode}, {self.dtype}{' AMP' if self.amp else ''}")


@dataclass(frozen=True)
class Cost:
    """What can be counted of a model; ``macs`` are multiply-adds for one image."""

    macs: int | None  # None, as the parameters, where nothing can be counted
    parameters: int | None
    note: str | None = None  # why not, or which operators the multiply-adds lack


@dataclass(frozen=True)
class Check:
    """What came of the comparison with the equation."""

    # The relative error that is the largest for its tolerance; infinite for what is missing or not finite.
    error: float | None
    worst: str | None  # the tensor that has it: "output", or the one whose gradient it is
    passed: bool  # all errors are within their tolerances
    failure: str | None = None  # why it did not run; then there are no errors


@dataclass
class Result:
    """What is found out about one candidate in one setting."""

    setting: Setting
    name: str
    cost: Cost | None = None  # None for a layer
    times: tuple[float, ...] | None = None  # seconds of each round; None: it did not run to the end
    peak: Peak | None = None  # None where memory was not measured
    failure: str | None = None  # why there are no times
    host_seconds: float | None = None  # until a call on a GPU returns, its work launched
    check: Check | None = None  # None where nothing is checked, and for what did not run
    remark: str | None = None  # on what runs as it should

    @property
    def seconds(self) -> float | None:
        """The median time of a call."""
        return statistics.median(self.times) if self.times else None

    @property
    def quartiles(self) -> tuple[float, float] | tuple[None, None]:
        """The first and the third of the times, in seconds."""
        if not self.times or len(self.times) == 1:
            return self.seconds, self.seconds
        first, _, third = statistics.quantiles(self.times, n=4, method="inclusive")
        return first, third

    @property
    def peak_bytes(self) -> int | None:
        """Peak memory of a call, beyond weights and inputs."""
        return self.peak.bytes if self.peak else None

    @property
    def is_wrong(self) -> bool:
        """Whether it ran and computed something else."""
        return self.check is not None and not self.check.passed and self.check.failure is None

    @property
    def note(self) -> str:
        """What a reader must know beside the figures, or nothing."""
        failure = self.failure or (self.check and self.check.failure)
        remarks = [failure or self.remark]
        if self.is_wrong and not failure:
            remarks.append(f"wrong: {self.check.worst}; no speed-up")
        if self.peak is not None and self.peak.failure not in (None, failure):
            remarks.append(f"memory: {self.peak.failure}")
        remarks.append(self.cost and self.cost.note)
        return "; ".join(filter(None, remarks))


@dataclass(frozen=True)
class Comparison:
    """All results, one for each candidate and setting, and the name of the speed-ups' baseline."""

    results: Sequence[Result]
    baseline: str

    @property
    def kinds(self) -> list[str]:
        """Of the settings, in the order of their first results."""
        return list(dict.fromkeys(result.setting.kind for result in self.results))

    @property
    def names(self) -> list[str]:
        """Of the candidates."""
        return list(dict.fromkeys(result.name for result in self.results))

    def of(self, kind: str) -> list[Result]:
        """Results of one kind."""
        return [result for result in self.results if result.setting.kind == kind]

    def speedup(self, result: Result) -> float | None:
        """Over the baseline in the same rounds; None where either has no times, or a check failed.

        The baseline may have failed its own: plain code loses its gradients' digits in pure bf16.
        """
        if result.times is None or (result.check is not None and not result.check.passed):
            return None
        for other in self.results:
            if other.name == self.baseline and other.setting == result.setting:
                return other.times and paired_speedup(other.times, result.times)
        return None


@dataclass
class Work:
    """One call of a candidate: forward, or forward and backward.

    Args:
        setting: mode, dtype and device.
        forward: computes the outputs, tensors in whatever lists and dicts.
        leaves: what the backward pass is to differentiate.
        factors: gradients of the outputs; None: random numbers that stay the same.
    """

    setting: Setting
    forward: Callable[[], object]
    leaves: Sequence[Tensor]
    factors: list[Tensor] | None = None

    def __call__(self) -> list[Tensor | None]:
        """The outputs, or in training the gradients; None for what the outputs do not depend on."""
        outputs, gradients = self.compute()
        return gradients if self.setting.training else outputs

    def compute(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """The outputs, and in training the gradients."""
        setting = self.setting
        device = torch.device(setting.device).type
        with (
            torch.set_grad_enabled(setting.training),
            torch.autocast(device, DTYPES[setting.dtype], enabled=setting.amp),
        ):
            outputs = [x for x in tree_leaves(self.forward()) if isinstance(x, Tensor)]
        if not setting.training:
            return outputs, []
        roots = [x for x in outputs if x.requires_grad]
        if self.factors is None:
            self.factors = [torch.randn_like(x) for x in roots]
        factors = [factor.to(x.dtype) for factor, x in zip(self.factors, roots, strict=True)]
        return outputs, list(torch.autograd.grad(roots, self.leaves, factors, allow_unused=True))


class Benchmark:
    """A kind of candidates: how they are built and judged, and what their results show.

    A candidate is whatever can be pickled and hashed; its ``str`` is its name. A kind also has

    - ``builder(setting)``: what builds :class:`Work` of candidates of a setting, to be timed together;
    - ``cells(comparison, result)``: of the tables, name of the column -> text. The first is the same for all
      candidates of a setting, the second is their name;
    - ``row(comparison, result)``: flat, for a CSV file; None where there is nothing;
    - ``content(comparison, how)``: for a JSON file, how it was measured, and the times of all rounds;
    - ``draw(comparison, title, path)``: a PNG.
    """

    explanation: ClassVar[str]  # of the tables' columns
    times_host: ClassVar[bool] = False  # measure :attr:`Result.host_seconds` on a GPU

    def build(self, setting: Setting, candidate: Any) -> Work:
        """A candidate with inputs of its own, the same for the same setting."""
        return self.builder(setting)(candidate)

    def start(self, setting: Setting, candidate: Any) -> Result:
        """What is known of a candidate before it runs."""
        return Result(setting, str(candidate))

    def reason_to_skip(
        self, result: Result, earlier: Sequence[Result], max_seconds: float | None
    ) -> str | None:
        """Why a candidate is left out; None if it is to be measured."""
        return None

    def checker(self, setting: Setting) -> Callable[[Any], Check | None]:
        """What checks candidates of a setting."""
        return lambda candidate: None

    def measures_memory(self, candidate: Any) -> bool:
        """Whether the peak of a call on a GPU says what the candidate takes."""
        return True


@dataclass(frozen=True)
class BenchmarkPlan:
    """How to measure."""

    benchmark: Benchmark  # the kind of the candidates
    candidates: Sequence[Any]
    rounds: int  # in each, every candidate runs once
    warmup: int  # calls of each before the first round
    memory: bool  # measure its peak
    max_seconds: float | None  # leave out what would take longer a call; None: nothing
    # Bytes that a call may take beyond weights and inputs; on CUDA, torch in all. None: what is free.
    max_memory: int | None = None

    @property
    def steps(self) -> int:
        """How far :func:`benchmark_setting` says that it has advanced."""
        return len(self.candidates) * (2 + self.warmup + self.rounds)


def benchmark_settings(
    settings: Sequence[Setting],
    plan: BenchmarkPlan,
    results: Sequence[Result],
    save: Callable[[Sequence[Result]], object],
) -> list[Result]:
    """Measure in all settings, of each kind small cases first, with a progress bar on stderr.

    ``save`` is called with all results after each setting. Returns ``results``, measured before, and the new.
    """
    results = list(results)
    with progress_bar() as progress:
        task = progress.add_task("", total=plan.steps * len(settings))
        for setting in settings:

            def advance(
                done: str, steps: int, about: str = f"{setting.case} {setting.mode}"
            ) -> None:
                progress.update(task, advance=steps, description=f"{about} {done}")

            results += benchmark_setting(setting, plan, results, advance)
            save(results)
    return results


def benchmark_setting(
    setting: Setting,
    plan: BenchmarkPlan,
    earlier: Sequence[Result],
    advance: Callable[[str, int], object],
) -> list[Result]:
    """Measure all candidates in one setting; returns a result for each, in their order.

    What fails, takes too much memory or would take too long is recorded. On the CPU memory comes first,
    in processes of its own: what fails or is killed there is not run here. ``earlier`` are results from
    before, to tell what would take too long; ``advance`` is called with what is done and its steps.
    """
    torch.compiler.reset()
    benchmark, device = plan.benchmark, torch.device(setting.device)
    on_cuda = device.type == "cuda"
    if on_cuda and plan.max_memory is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(plan.max_memory / total, 1.0), device)

    results = {candidate: benchmark.start(setting, candidate) for candidate in plan.candidates}
    for candidate, result in results.items():
        result.failure = benchmark.reason_to_skip(result, earlier, plan.max_seconds)
        if plan.memory and not on_cuda and result.failure is None:
            result.peak = peak_in_fresh_process(
                benchmark.build,
                setting,
                candidate,
                threads=torch.get_num_threads(),
                most_bytes=plan.max_memory or available_memory(),
            )
            result.failure = None if result.peak.failure == LINUX_ONLY else result.peak.failure
        advance(f"{candidate}: memory", 1)

    check = benchmark.checker(setting)
    for candidate, result in results.items():
        if result.failure is None:
            result.check = check(candidate)
        advance(f"{candidate}: check", 1)
    del check
    _release(on_cuda)

    build = benchmark.builder(setting)
    calls: dict[Any, Call] = {}
    for candidate, result in results.items():
        if result.failure is None:
            try:
                calls[candidate] = build(candidate)
            except Exception as error:
                result.failure = describe_failure(error)
    steps = len(plan.candidates) * (plan.warmup + plan.rounds)
    clock = clock_of(device)

    def telling_clock(call: Call) -> float:
        nonlocal steps
        seconds = clock(call)
        steps -= 1
        advance("times", 1)
        return seconds

    times, failures = alternate(calls, plan.rounds, plan.warmup, telling_clock)
    for candidate in calls:
        result = results[candidate]
        result.times, result.failure = times.get(candidate), failures.get(candidate)
        if on_cuda and result.times:
            if benchmark.times_host:
                result.host_seconds = host_seconds(calls[candidate], device, plan.rounds)
            if plan.memory and benchmark.measures_memory(candidate):
                result.peak = peak_on_cuda(calls[candidate], device)
    advance("times", steps)
    del build
    calls.clear()
    _release(on_cuda)
    return list(results.values())


def _release(on_cuda: bool) -> None:
    gc.collect()
    if on_cuda:
        torch.cuda.empty_cache()
