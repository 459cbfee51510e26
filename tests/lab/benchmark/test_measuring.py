"""Devices, times in turns with a clock that the test sets, and one line for whatever goes wrong."""

import os
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from flatten_det.errors import UserError, describe_failure
from flatten_det.lab.benchmark import timing
from flatten_det.lab.benchmark.machine import busy_remark, describe_machine, find_device
from flatten_det.lab.benchmark.run import Result
from flatten_det.lab.benchmark.timing import alternate, copy_bandwidth, host_seconds, paired_speedup


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99"])
def test_find_device(name):
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match=f"--device {name}: "):
        find_device(name)


@pytest.mark.parametrize(("name", "index"), [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_has_an_index_which_torch_needs(name, index, monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(device.index))
    assert find_device(name) == torch.device("cuda", index)
    assert chosen == [index]


def test_machine():
    machine = describe_machine(torch.device("cpu"))
    assert machine["threads"] == torch.get_num_threads()
    assert machine["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert machine["device"].startswith(machine["cpu"])


def test_copy_bandwidth_counts_both_directions(monkeypatch):
    monkeypatch.setitem(timing.COPIED_BYTES, "cpu", 1000)
    monkeypatch.setattr(timing, "clock_of", lambda device: lambda call: (call(), 0.5)[1])
    assert copy_bandwidth(torch.device("cpu")) == 2 * 1000 / 0.5


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 8.0, 8.0))
    assert busy_remark() is None
    monkeypatch.setattr(os, "getloadavg", lambda: (3.14, 0.0, 0.0))
    assert busy_remark().startswith("this machine is busy: 3.1 processes on 4 processors")


def make_clock(seconds):
    """A clock for calls that return their name; ``seconds(name, how often it has run before)``."""
    calls = []

    def clock(call):
        name = call()
        calls.append(name)
        return seconds(name, calls.count(name) - 1)

    return clock, calls


def named(*names):
    return {name: lambda name=name: name for name in names}


def test_every_candidate_once_per_round_in_rotating_order():
    clock, calls = make_clock(lambda name, number: number)
    times, failures = alternate(named("a", "b", "c"), rounds=4, warmup=1, clock=clock)
    assert calls == [*"abc", *"abc", *"bca", *"cab", *"abc"]
    assert not failures
    # What the warm-up took is no time of a round.
    assert times == dict.fromkeys("abc", (1, 2, 3, 4))


def test_speedup_pairs_the_rounds():
    """The machine gets ten times slower half-way: medians of all rounds would mix that in."""
    seconds = {"baseline": [2, 2, 20, 20, 20], "fast": [1, 1, 10, 10, 1000]}
    clock, _ = make_clock(lambda name, number: seconds[name][number])
    times, _ = alternate(named(*seconds), rounds=5, warmup=0, clock=clock)
    assert paired_speedup(times["baseline"], times["fast"]) == 2
    assert paired_speedup(times["baseline"], times["baseline"]) == 1


def test_time_of_the_host(monkeypatch):
    """Until a call returns, with nothing left to do on the device before it."""
    done, ticks = [], iter([0, 5, 10, 11, 20, 23])
    monkeypatch.setattr(
        torch.cuda, "synchronize", lambda device: done.append(f"waited for {device}")
    )
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    assert host_seconds(lambda: done.append("called"), torch.device("cuda:1"), rounds=3) == 3
    assert done == ["waited for cuda:1", "called"] * 3


def test_median_and_quartiles():
    result = Result(None, "a", times=(5.0, 1.0, 4.0, 2.0, 3.0))
    assert result.seconds == 3
    assert result.quartiles == (2, 4)
    assert Result(None, "a", times=(7.0,)).quartiles == (7, 7)


@pytest.mark.parametrize("fails_at", [0, 3])
def test_a_failing_candidate_leaves_the_others_alone(fails_at):
    def seconds(name, number):
        if name == "b" and number == fails_at:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return 1.0

    clock, calls = make_clock(seconds)
    times, failures = alternate(named("a", "b"), rounds=5, warmup=2, clock=clock)
    assert failures == {"b": "out of memory"}
    assert times == {"a": (1.0,) * 5}
    assert calls.count("b") == fails_at + 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"
        ),
        BrokenProcessPool("A process in the process pool was terminated abruptly"),
    ],
)
def test_out_of_memory(error):
    assert describe_failure(error).startswith("out of memory")


def test_one_line_for_whatever_goes_wrong():
    with pytest.raises(RuntimeError) as too_large:
        torch.empty(2**60, dtype=torch.uint8)
    assert describe_failure(too_large.value) == "out of memory"
    error = ValueError("\n  the first line \nmore")
    assert describe_failure(error) == "ValueError: the first line"
    assert describe_failure(KeyError()) == "KeyError: no message"
    assert len(describe_failure(ValueError("x" * 5000))) <= 200
