"""Whole cells: what is measured, in which order, and what is recorded when something is wrong."""

import sys

import pytest
import torch

from flatten_det.lab.benchmark import models as models_module
from flatten_det.lab.benchmark import run
from flatten_det.lab.benchmark.growth import Growth
from flatten_det.lab.benchmark.memory import LINUX_ONLY, Peak
from flatten_det.lab.benchmark.models import ModelBenchmark, make_candidates
from flatten_det.lab.benchmark.report import make_table, tables
from flatten_det.lab.benchmark.run import BenchmarkPlan, Cost, Setting, benchmark_setting
from flatten_det.lab.benchmark.sources import Size

SETTING = Setting(Size(32, 64))
SLOWER = Setting(Size(320, 640))


@pytest.fixture
def models(monkeypatch):
    """Models that note when they run; their names say how they fail."""
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


def measure(
    *names, setting=SETTING, memory=False, max_seconds=None, earlier=(), rounds=3, graphs=False
):
    candidates = make_candidates(names, False, True, graphs)
    plan = BenchmarkPlan(ModelBenchmark(), candidates, rounds, 1, memory, max_seconds)
    advanced = []
    results = benchmark_setting(
        setting, plan, list(earlier), lambda done, steps: advanced.append(steps)
    )
    assert sum(advanced) == plan.steps
    assert [r.name for r in results] == [str(candidate) for candidate in candidates]
    return results


def test_models_take_turns(models):
    first, second = measure("a", "b")
    assert models == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert len(first.timing.seconds) == len(second.timing.seconds) == 3
    assert first.cost == Cost((32 * 64) ** 2, 7)
    assert first.peak is None


def test_failures_are_recorded_and_leave_the_others_alone(models):
    greedy, broken, fine = measure("greedy", "broken", "fine")
    assert greedy.note == "out of memory"
    assert broken.note == "ValueError: no such layer"
    assert greedy.timing is broken.timing is None
    assert models == ["greedy"] + ["fine"] * 4
    assert len(fine.timing.seconds) == 3


def test_what_would_take_too_long_is_not_run(models):
    earlier = measure("a")
    models.clear()
    (result,) = measure("a", setting=SLOWER, earlier=earlier, max_seconds=1e-12)
    assert not models
    assert result.failure.startswith("too slow: about")
    assert result.cost.macs == (320 * 640) ** 2


def test_on_a_gpu(models, monkeypatch):
    """The host's time counts too, and the memory that a graph has had since its capture does not."""
    monkeypatch.setattr(run, "clock_of", lambda device: lambda call: call() or 2.0)
    monkeypatch.setattr(run, "host_seconds", lambda call, device, rounds: call() or rounds / 8)
    monkeypatch.setattr(run, "peak_on_cuda", lambda call, device: call() or Peak(5))
    setting = Setting(Size(32, 64), device="cuda")
    plain, graphs = measure("a", setting=setting, memory=True, graphs=True)
    assert (plain.timing.median, plain.host_seconds, plain.peak_bytes) == (2.0, 3 / 8, 5)
    assert (graphs.timing.median, graphs.host_seconds, graphs.peak) == (2.0, 3 / 8, None)
    (table,) = tables(ModelBenchmark(), Growth([plain, graphs], "a", 0))
    assert list(make_table(*table).columns[4].cells) == ["375", "375"]


def test_memory_comes_first_and_protects_this_process(models, monkeypatch):
    peaks = {"a": Peak(5), "b": Peak(None, "out of memory, it seems"), "c": Peak(None, LINUX_ONLY)}
    limits = []

    def peak(build, setting, candidate, threads, most_bytes):
        assert not models
        limits.append(most_bytes)
        return peaks[str(candidate)]

    monkeypatch.setattr(run, "peak_in_fresh_process", peak)
    a, b, c = measure("a", "b", "c", memory=True)
    assert set(models) == {"a", "c"}
    assert a.peak_bytes == 5
    assert b.note == "out of memory, it seems"
    assert c.timing is not None
    assert c.note == f"memory: {LINUX_ONLY}"
    if sys.platform.startswith("linux"):
        assert min(limits) > 2**20
