"""Peak memory of a call: what it takes at most beyond what lies there when it starts.

On CUDA the allocator counts. On the CPU the resident memory is measured, in a process of its own:

- A fresh process for each measurement, because memory that an earlier candidate has freed may stay with
  the allocator and hide what the next one takes. All are forked from a server that has imported this
  package and computed nothing, so that imports neither take time again nor count.
- One call first, whose result is dropped: thread pools, packed weights and compiled code stay, and are
  not what a call takes.
- Then glibc gives free memory back (``malloc_trim``): otherwise the call could use it unseen. Its
  thresholds are left alone, because the call is to behave as everywhere else. So what lies in a block of
  less than 32 MiB comes from the heap, and holes in the heap count as memory taken.
- The high-water mark ``VmHWM`` is reset (``/proc/self/clear_refs``), which ``getrusage`` cannot do: its
  ``ru_maxrss`` is the mark of the whole life of the process and, after ``exec``, of its parent too.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch

from ...errors import OUT_OF_MEMORY, describe_failure

# What is imported before a measurement, for what an import leaves in the heap would change it.
_PRELOADED = [f"{__package__}.{name}" for name in ("attention", "models")]
_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
LINUX_ONLY = "peak memory on the CPU is measured on Linux only"
# What oneDNN says when it gets no memory, among other occasions.
_ONEDNN = ("could not create a", "could not execute a")


@dataclass(frozen=True)
class Peak:
    """Peak memory of a call minus the level before it, or why it is not known, in a line."""

    bytes: int | None
    failure: str | None = None


def peak_on_cuda(call: Callable[[], object], device: torch.device) -> Peak:
    """What ``call`` takes from torch's allocator at most, its result included; no exception."""
    try:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
        del result
        return Peak(peak - before)
    except Exception as error:
        return Peak(None, describe_failure(error))


def peak_in_fresh_process(
    build: Callable[..., Callable[[], object]],
    *args: Any,
    threads: int,
    most_bytes: int | None = None,
) -> Peak:
    """Resident memory that a call on the CPU takes at most, its result included.

    Nothing that happens in the process is an exception here, not even that the system kills it for want of
    memory. ``build``, a function of a module, returns the call, its inputs and weights allocated; ``args``
    must be picklable. A call that takes more than ``most_bytes`` is out of memory; None: as much as there is.
    """
    if not sys.platform.startswith("linux"):
        return Peak(None, LINUX_ONLY)
    try:
        with ProcessPoolExecutor(1, mp_context=_fresh_processes()) as pool:
            return pool.submit(_measure, threads, most_bytes, build, *args).result()
    except Exception as error:
        return Peak(None, describe_failure(error))


def peak_of_this_process(call: Callable[[], object]) -> int:
    """Bytes of resident memory that ``call`` takes at most, its result included."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # Resets the high-water mark.
    before = _bytes_of(_STATUS, "VmRSS")
    result = call()
    peak = _bytes_of(_STATUS, "VmHWM")
    del result
    return max(peak - before, 0)


def available_memory() -> int | None:
    """Bytes that this machine can still give without swapping; None where that is not known."""
    return _bytes_of(_MEMORY, "MemAvailable") if _MEMORY.is_file() else None


def _measure(
    threads: int, most_bytes: int | None, build: Callable[..., Callable[[], object]], *args: Any
) -> Peak:
    torch.set_num_threads(threads)
    try:
        call = build(*args)
        if most_bytes is not None:
            # Allocations beyond so many more fail, before the system kills what it likes.
            import resource  # not on Windows

            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            most = _bytes_of(_STATUS, "VmData") + most_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        call()
        return Peak(peak_of_this_process(call))
    except Exception as error:
        failure = describe_failure(error)
        if most_bytes is not None and str(error).startswith(_ONEDNN):
            failure = f"{OUT_OF_MEMORY}, it seems: {failure}"
        return Peak(None, failure)


def _bytes_of(file: Path, field: str) -> int:
    """A field of a file in /proc that is given in kB, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", file.read_text(), flags=re.MULTILINE)
    return int(found[1]) * 1024


@cache
def _fresh_processes() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # The frameworks print remarks when the server imports them, which belong into no table.
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            pool.submit(os.getpid).result()
        return context
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
