"""Whole cells: what is recorded when something is wrong, and what may be shown then."""

import sys

import pytest
import torch
from rich.console import Console

from flatten_det.lab.benchmark import run
from flatten_det.lab.benchmark.attention import (
    CORE,
    MODES,
    AttentionBenchmark,
    find_case,
    peak_units,
    verdict,
)
from flatten_det.lab.benchmark.report import make_table, tables
from flatten_det.lab.benchmark.run import BenchmarkPlan, Comparison, Setting, benchmark_setting

CASE = find_case("32,2,5,7", CORE)
BENCHMARK = AttentionBenchmark(bandwidth=1e9)
PEERS = """
import torch
from flatten_det.attention import focused_linear_attention

def wrong(*args, **options):
    return 1.1 * focused_linear_attention(*args, **options)

def greedy(*args, **options):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB")
"""


@pytest.fixture(autouse=True)
def peers(tmp_path, monkeypatch):
    (tmp_path / "run_peers.py").write_text(PEERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("run_peers", None)


def measure(*candidates, mode=MODES[1], memory=False, max_seconds=5.0):
    """Results by candidate."""
    plan = BenchmarkPlan(BENCHMARK, candidates, 3, 1, memory, max_seconds)
    told = []
    results = benchmark_setting(
        Setting(CASE, mode), plan, [], lambda done, steps: told.append(steps)
    )
    assert sum(told) == plan.steps
    assert [r.name for r in results] == list(candidates)
    return {r.name: r for r in results}


def speedup(results, name, baseline="eager"):
    return Comparison(list(results.values()), baseline).speedup(results[name])


def test_only_the_right_function_gets_a_speedup():
    results = measure("tiled", "eager", "sdpa", "run_peers:wrong")
    tiled, eager, sdpa, wrong = results.values()
    assert speedup(results, "eager") == 1
    assert speedup(results, "tiled") > 0
    assert verdict(tiled) == verdict(eager) == "passed"
    fraction = 16 * 5 * 7 * 32 * 4 / tiled.timing.median / 1e9
    assert BENCHMARK.floor_fraction(tiled) == pytest.approx(fraction)
    assert verdict(sdpa) == sdpa.note == "other function"
    assert sdpa.check is None
    assert BENCHMARK.floor_fraction(sdpa) is None
    assert wrong.timing is not None
    assert verdict(wrong) == "failed"
    assert wrong.check.error == pytest.approx(0.1, rel=0.01)
    assert speedup(results, "run_peers:wrong") is None
    assert BENCHMARK.floor_fraction(wrong) is None
    comparison = Comparison(list(results.values()), "eager")
    assert BENCHMARK.row(comparison, wrong)["speedup"] is None
    assert "no speed-up" in wrong.note


def test_running_out_of_memory_is_recorded():
    results = measure("eager", "run_peers:greedy", "tiled")
    greedy = results["run_peers:greedy"]
    assert greedy.failure == greedy.note == "out of memory"
    assert greedy.timing is None
    assert speedup(results, "run_peers:greedy") is None
    assert speedup(results, "tiled") > 0


def test_memory_is_measured_first_and_protects_this_process(monkeypatch):
    ran = []

    def peak(build, setting, candidate, threads, most_bytes):
        if candidate == "reference":
            return run.Peak(None, "out of memory, it seems: the system killed the process")
        return run.Peak(1234)

    monkeypatch.setattr(run, "peak_in_fresh_process", peak)
    builder = AttentionBenchmark.builder

    def telling_builder(self, setting):
        return lambda name: ran.append(name) or builder(self, setting)(name)

    monkeypatch.setattr(AttentionBenchmark, "builder", telling_builder)
    results = measure("eager", "reference", memory=True)
    assert ran == ["eager"]
    assert peak_units(results["eager"]) == pytest.approx(1234 / (35 * 32 * 4))
    assert "killed" in results["reference"].note


def test_a_failed_baseline_leaves_times_without_speedups():
    results = measure("run_peers:greedy", "tiled")
    assert results["tiled"].timing is not None
    assert speedup(results, "tiled", baseline="run_peers:greedy") is None


def test_without_a_compiler_the_cell_says_so(monkeypatch):
    def compile(function, **options):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", compile)
    results = measure("eager", "compiled")
    assert results["compiled"].note == (
        "RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
    )
    assert speedup(results, "eager") == 1


def test_softmax_attention_that_takes_too_long_is_left_out():
    sdpa = measure("eager", "sdpa", max_seconds=0)["sdpa"]
    assert "s per call, more than --max-seconds 0" in sdpa.note
    assert sdpa.timing is None


def test_an_implementation_of_another_device_says_so():
    triton = measure("eager", "triton", mode=MODES[0])["triton"]
    assert "'triton' cannot compute this: the inputs are on cpu" in triton.note


def test_table_shows_errors_but_no_speedup_of_wrong_ones():
    results = list(measure("eager", "run_peers:wrong").values())
    console = Console(width=200, record=True, quiet=False)
    (table,) = tables(BENCHMARK, Comparison(results, "eager"))
    with console.capture() as captured:
        console.print(make_table(*table))
    printed = captured.get()
    (line,) = (line for line in printed.splitlines() if "run_peers:wrong" in line)
    assert "1.0e-01" in line
    assert "wrong: " in line
    assert "x │" not in line.split("run_peers:wrong")[1]
    assert "1.00x" in printed
    assert "peak MiB" not in printed
