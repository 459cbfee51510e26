"""One line for whatever goes wrong."""

from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from flatten_det.errors import describe_failure


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
