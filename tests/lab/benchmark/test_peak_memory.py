"""Peak memory of calls that take a known amount."""

import os
import signal
import sys
from collections.abc import Callable

import pytest
import torch

from flatten_det.errors import OUT_OF_MEMORY
from flatten_det.lab.benchmark.memory import available_memory, peak_in_fresh_process

MIB = 2**20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def two_of_three(mib: int, pieces: int) -> Callable[[], torch.Tensor]:
    """A call with at most two tensors of ``mib`` at once, in pieces; one is left.

    Before it, three of them are taken, and all but their last piece given back to the allocator: what
    lies below that in the heap does not go back to the system by itself.
    """

    def take() -> list[torch.Tensor]:
        return [torch.ones(mib * MIB // pieces // 4) for _ in range(pieces)]

    def call() -> list[torch.Tensor]:
        assert last[0] == 1
        first = take()
        second = take()
        del first
        third = take()
        del second
        return third

    earlier = [take() for _ in range(3)]
    last = earlier[-1][-1]
    del earlier
    return call


def kill_yourself() -> Callable[[], object]:
    os.kill(os.getpid(), signal.SIGKILL)
    return lambda: None


def fail() -> Callable[[], object]:
    raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("pieces", "least", "most"),
    # Pieces of 1 MiB come from glibc's heap, whose holes may cost up to one of the three more.
    [(1, 0.9 * 128, 1.1 * 128), (64, 0.9 * 128, 1.1 * 192)],
)
def test_known_allocation(pieces, least, most):
    peak = peak_in_fresh_process(two_of_three, 64, pieces, threads=1)
    assert peak.failure is None
    assert least * MIB <= peak.bytes <= most * MIB


def test_memory_of_this_process_does_not_count():
    ballast = torch.ones(400 * MIB // 4)
    peak = peak_in_fresh_process(two_of_three, 32, 1, threads=1)
    assert peak.bytes == pytest.approx(64 * MIB, rel=0.1)
    assert ballast[-1] == 1


def test_what_goes_wrong_in_the_process_is_told():
    killed = peak_in_fresh_process(kill_yourself, threads=1)
    assert killed.bytes is None
    assert killed.failure.startswith(OUT_OF_MEMORY)
    assert peak_in_fresh_process(fail, threads=1).failure == "ValueError: no such thing"


def test_more_than_allowed_is_out_of_memory():
    peak = peak_in_fresh_process(two_of_three, 64, 1, threads=1, most_bytes=96 * MIB)
    assert peak.bytes is None
    assert peak.failure.startswith(OUT_OF_MEMORY)
    allowed = peak_in_fresh_process(two_of_three, 64, 1, threads=1, most_bytes=300 * MIB)
    assert allowed.bytes == pytest.approx(128 * MIB, rel=0.1)


def test_available_memory_is_that_of_this_machine():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 50 * MIB < available_memory() <= total
