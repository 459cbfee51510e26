"""Times in turns, with a clock that the test sets."""

import pytest
import torch

from flatten_det.lab.benchmark import timing
from flatten_det.lab.benchmark.run import Result
from flatten_det.lab.benchmark.timing import alternate, host_seconds, paired_speedup


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
