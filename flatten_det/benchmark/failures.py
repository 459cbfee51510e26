"""What went wrong in one cell of a benchmark, in a few words."""

from concurrent.futures.process import BrokenProcessPool

import torch

OUT_OF_MEMORY = "out of memory"
_LONGEST = 200


def describe_failure(error: BaseException) -> str:
    """One line: that memory ran out, or the class of the error and the first line of its message."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, BrokenProcessPool):
        return f"{OUT_OF_MEMORY}, it seems: the system killed the process"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:_LONGEST]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator for the CPU has no exception of its own.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
