"""Whole cells: what is measured, in which order, and what is recorded when something is wrong."""

import sys

import pytest
import torch
from rich.console import Console

from flatten_det.lab.benchmark import models as models_module
from flatten_det.lab.benchmark import run
from flatten_det.lab.benchmark.attention import CORE, MODES, AttentionBenchmark, find_case, verdict
from flatten_det.lab.benchmark.growth import Growth
from flatten_det.lab.benchmark.memory import LINUX_ONLY, Peak
from flatten_det.lab.benchmark.models import ModelBenchmark, make_candidates
from flatten_det.lab.benchmark.report import tables
from flatten_det.lab.benchmark.run import (
    BenchmarkPlan,
    Comparison,
    Cost,
    Setting,
    benchmark_setting,
)
from flatten_det.lab.benchmark.sources import Size
from flatten_det.lab.output import make_table

CASE = find_case("32,2,5,7", CORE)
ATTENTION, MODELS = AttentionBenchmark(bandwidth=1e9), ModelBenchmark()
SETTING = Setting(Size(32, 64))


def measure(benchmark, setting, candidates, memory=False, max_seconds=None, earlier=()):
    plan = BenchmarkPlan(benchmark, candidates, 3, 1, memory, max_seconds)
    told = []
    results = benchmark_setting(setting, plan, earlier, lambda done, steps: told.append(steps))
    assert sum(told) == plan.steps
    assert [r.name for r in results] == [str(candidate) for candidate in candidates]
    return results


def measure_attention(*candidates, max_seconds=5.0):
    """Results by candidate."""
    results = measure(ATTENTION, Setting(CASE, MODES[1]), candidates, max_seconds=max_seconds)
    return dict(zip(candidates, results, strict=True))


def speedup(results, name, baseline="eager"):
    return Comparison(list(results.values()), baseline).speedup(results[name])


def test_only_the_right_function_gets_a_speedup(peers):
    names = ("tiled", "eager", "sdpa", "some_peers:scaled", "some_peers:greedy", "triton")
    results = measure_attention(*names)
    tiled, eager, sdpa, wrong, greedy, triton = results.values()
    assert speedup(results, "eager") == 1
    assert speedup(results, "tiled") > 0
    assert verdict(tiled) == verdict(eager) == "passed"
    fraction = 16 * 5 * 7 * 32 * 4 / tiled.seconds / 1e9
    assert ATTENTION.floor_fraction(tiled) == pytest.approx(fraction)
    assert verdict(sdpa) == sdpa.note == "other function"
    assert sdpa.check is None
    assert ATTENTION.floor_fraction(sdpa) is None

    assert wrong.times is not None
    assert verdict(wrong) == "failed"
    assert wrong.check.error == pytest.approx(0.1, rel=0.01)
    assert speedup(results, wrong.name) is None
    assert ATTENTION.floor_fraction(wrong) is None
    comparison = Comparison(list(results.values()), "eager")
    assert ATTENTION.row(comparison, wrong)["speedup"] is None
    assert "no speed-up" in wrong.note

    assert greedy.failure == greedy.note == "out of memory"
    assert greedy.times is None
    assert speedup(results, greedy.name) is None
    # A baseline that failed leaves times without speed-ups.
    assert speedup(results, "tiled", baseline=greedy.name) is None
    assert "'triton' cannot compute this: the inputs are on cpu" in triton.note

    console = Console(width=200)
    (table,) = tables(ATTENTION, comparison)
    with console.capture() as captured:
        console.print(make_table(*table))
    printed = captured.get()
    (line,) = (line for line in printed.splitlines() if wrong.name in line)
    assert "1.0e-01" in line
    assert "wrong: " in line
    assert "x │" not in line.split(wrong.name)[1]
    assert "1.00x" in printed
    assert "peak MiB" not in printed


def test_without_a_compiler_the_cell_says_so(monkeypatch):
    def compile(function, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", compile)
    results = measure_attention("eager", "compiled")
    assert results["compiled"].note == (
        "RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
    )
    assert speedup(results, "eager") == 1


def test_softmax_attention_that_takes_too_long_is_left_out():
    sdpa = measure_attention("eager", "sdpa", max_seconds=0)["sdpa"]
    assert "s per call, more than --max-seconds 0" in sdpa.note
    assert sdpa.times is None


@pytest.fixture
def ran(monkeypatch):
    """Names of the models that ran; some of these say how they fail."""
    ran = []

    def build_work(setting, candidate):
        def work():
            ran.append(str(candidate))
            if str(candidate) == "greedy":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")

        if str(candidate) == "broken":
            raise ValueError("no such layer")
        return work

    monkeypatch.setattr(models_module, "build_work", build_work)
    monkeypatch.setattr(models_module, "count_cost", lambda model, size: Cost(size.pixels**2, 7))
    return ran


def measure_models(*names, setting=SETTING, graphs=False, **options):
    return measure(MODELS, setting, make_candidates(names, False, True, graphs), **options)


def test_models_take_turns(ran):
    first, second = measure_models("a", "b")
    assert ran == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert len(first.times) == len(second.times) == 3
    assert first.cost == Cost((32 * 64) ** 2, 7)
    assert first.peak is None


def test_failures_are_recorded_and_leave_the_others_alone(ran):
    greedy, broken, fine = measure_models("greedy", "broken", "fine")
    assert greedy.note == "out of memory"
    assert broken.note == "ValueError: no such layer"
    assert greedy.times is broken.times is None
    assert ran == ["greedy"] + ["fine"] * 4
    assert len(fine.times) == 3


def test_what_would_take_too_long_is_not_run(ran):
    earlier = measure_models("a")
    ran.clear()
    slower = Setting(Size(320, 640))
    (result,) = measure_models("a", setting=slower, earlier=earlier, max_seconds=1e-12)
    assert not ran
    assert result.failure.startswith("too slow: about")
    assert result.cost.macs == (320 * 640) ** 2


def test_on_a_gpu(ran, monkeypatch):
    """The host's time counts too, and the memory that a graph has had since its capture does not."""
    monkeypatch.setattr(run, "clock_of", lambda device: lambda call: call() or 2.0)
    monkeypatch.setattr(run, "host_seconds", lambda call, device, rounds: call() or rounds / 8)
    monkeypatch.setattr(run, "peak_on_cuda", lambda call, device: call() or Peak(5))
    setting = Setting(Size(32, 64), device="cuda")
    plain, graphs = measure_models("a", setting=setting, memory=True, graphs=True)
    assert (plain.seconds, plain.host_seconds, plain.peak_bytes) == (2.0, 3 / 8, 5)
    assert (graphs.seconds, graphs.host_seconds, graphs.peak) == (2.0, 3 / 8, None)
    (table,) = tables(MODELS, Growth([plain, graphs], "a", 0))
    assert list(make_table(*table).columns[4].cells) == ["375", "375"]


def test_memory_comes_first_and_protects_this_process(ran, monkeypatch):
    peaks = {"a": Peak(5), "b": Peak(None, "out of memory, it seems"), "c": Peak(None, LINUX_ONLY)}
    limits = []

    def peak(build, setting, candidate, threads, most_bytes):
        assert not ran
        limits.append(most_bytes)
        return peaks[str(candidate)]

    monkeypatch.setattr(run, "peak_in_fresh_process", peak)
    a, b, c = measure_models("a", "b", "c", memory=True)
    assert set(ran) == {"a", "c"}
    assert a.peak_bytes == 5
    assert b.note == "out of memory, it seems"
    assert c.times is not None
    assert c.note == f"memory: {LINUX_ONLY}"
    if sys.platform.startswith("linux"):
        assert min(limits) > 2**20
