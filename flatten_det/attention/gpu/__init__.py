"""Focused linear attention in Triton kernels: fp32, fp16 and bf16, forward and backward, p = 3.

Nothing here imports Triton until a kernel is asked for. An H200 confirmed an earlier version of the kernels
(November 2026), which instructions and waiting made ten times slower than its memory allows. This version was
designed from the machine code and has not run on a GPU: ``tests/attention/gpu/test_machine_code.py`` prints
registers, barriers and instructions per element, ``pytest -m gpu`` checks values and gradients on a card.

**Bytes moved.** U is one tensor ``(B, N, C)``. Eager execution of the equation moves about 50 U forward. Here

==========================  =================================================  =========
kernel                      reads and writes                                   U
==========================  =================================================  =========
``reduce_keys``             k, v, positions                                    2 (+1/B)
``attend``                  q, v; out (twice, the second time from the cache)  3
``backward_queries``        q, grad; d_q                                       3
``join_heads``              q, grad, k, v, positions; d_q                      5 (+1/B)
``backward_keys``           k, v, positions, grad; d_k, d_v (twice)            6 (+1/B)
``backward_depthwise``      v, grad                                            2
``sum_parameters``          d_k; d_positions                                   1 (+1/B)
==========================  =================================================  =========

that is 5-6 U forward and 17-20 U with backward. Only with several heads ``join_heads`` is there, which has
d_q from ``backward_queries``: 4 U more; with many, ``row_norms`` reads q and k once more forward. Norms of
rows, 16 bytes for each token, are kept from the forward pass, but not by one without gradients.

**Why like this.**

- Norms span all channels of a row and the sums f(k)^T v are per head. A program that has all heads reads
  each row once, and keeps it in registers. Where the sums of all heads do not fit there, as backward, every
  head has its own programs: norms come from the forward pass, and what else the heads share is a number per
  head and row, which whoever needs the sum adds up.
- No norm is needed for the queries: a positive scale of a row of q cancels, but for the eps.
- Splits of the tokens are summed in a second kernel, always in the same order, not by atomics: results are
  the same bit for bit in every run. Backward, programs of ``backward_depthwise`` do it, which is a launch
  less. There are four launches with one head, five with several.
- The convolution is the second half of the kernels that attend, which is a launch less and finds their output
  in the cache. Of K rows of outputs all sums are in registers, and so are the K*K taps: outputs of 4 columns
  need K + 3 values of a row, and 25 multiply-adds cost 40 instructions.
- Shared memory, with two barriers each time, is avoided. A thread loads and stores what it has of a tile in
  products (:func:`.tiles.tile_lanes`), so that nothing changes hands between them and memory. Sums over the
  tokens of a tile are products with ones or with what the tokens are weighted by: what these read has to be
  in shared memory, and is all that passes through it. Numbers of rows are stored side by side.

**Padding.** Kernels walk over a map's own rows and columns, and step from row to row by the width of the
padded one: padding is neither read nor written. Its zeros are filled in before (one operator forward, three
backward, 1 U each). The divisions are 1-3 % more instructions per element, and none where nothing is padded.

**Numbers.** All arithmetic is float32; products of matrices have operands of 16 bits where the inputs do.

- ``kv`` and the mean of f(k) are sums over the same rounded f(k): weights of the attention sum to one.
- ``kv`` is that of ``v - centre``, the centre being the mean of some tokens, and later of all as the keys
  weigh them. The centre's share of the output is exact, what is rounded is small, and the gradients of q and
  k are no small differences of large numbers: for equal tokens they are of the order of eps.

**Considered and dropped.** Products in tf32 (their operands cannot be transposed in shared memory: 51 loads
and 24 stores per tile); all heads in a program backward (spills of 1 KB per thread with two heads); atomics;
a tile of sums for the scale's gradient wherever it is (two barriers less, but spills with one head); a
product with ones on the diagonal, to bring rows into the registers of products; specialising on sizes
(strides are passed in units of eight elements instead, so that one compilation serves all images).
"""

import importlib
import os
import shutil
import warnings
from functools import cache
from pathlib import Path
from traceback import walk_tb
from typing import Any

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Earlier ones were not tried; tuples of tensors in kernels are young.
MINIMUM_TRITON = (3, 6)
# What Triton reports, in CUDA's words, when a kernel cannot be loaded or launched. Other errors of CUDA are
# not of the kernel's making, or leave a device behind that computes nothing any more.
_LAUNCH_ERRORS = ("image", "PTX", "device function", "too many resources", "invalid argument")
_failures: list[str] = []


@cache
def unavailable_reason() -> str | None:
    """Why the kernels cannot be used in this process, or None."""
    try:
        triton = importlib.import_module("triton")
        importlib.import_module("triton.language")
    except Exception as error:
        # A Triton that does not fit the system fails in its native parts, not only with ImportError.
        return f"triton cannot be imported ({type(error).__name__}: {error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < MINIMUM_TRITON:
        return f"triton {triton.__version__}, the kernels need {'.'.join(map(str, MINIMUM_TRITON))}"
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    if triton.knobs.build.impl or any(Path(triton.knobs.cache.dir).glob("*/*.so")):
        # What was built before needs no compiler. Should it not be enough: see give_up.
        return None
    return "no C compiler, which triton needs for launching: install gcc, or name one in CC"


def available() -> bool:
    """Whether Triton can be imported and build. Whether it serves a call, :func:`supported` says."""
    return unavailable_reason() is None


def supported(
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    channels: int,
    num_heads: int,
    has_fewer_keys: bool = False,
    is_empty: bool = False,
) -> str | None:
    """Why the kernels do not serve a call with p = 3, or None; arguments are those of ``dispatch.Kind``."""
    if has_fewer_keys:
        return "there are fewer keys than queries, the kernels need as many"
    if is_empty:
        return "there are no tokens"
    for dtype in dtypes:
        if dtype not in DTYPES:
            return f"{dtype}, the kernels take float32, float16 and bfloat16"
    if channels % 8 or channels > 1024:
        return f"C={channels}, the kernels take multiples of 8 up to 1024"
    if not 16 <= channels // num_heads <= 64:
        return f"head dimension {channels // num_heads}, the kernels take 16 to 64"
    return machine_reason(device)


@torch.compiler.assume_constant_result
def machine_reason(device: torch.device) -> str | None:
    """Why no kernel runs on a device, or None."""
    return unavailable_reason() or _device_reason(device)


def _device_reason(device: torch.device) -> str | None:
    if device.type == "cpu":
        interpreted = importlib.import_module(".tiles", __name__).interpreted()
        return None if interpreted else "tensors on the CPU without TRITON_INTERPRET=1"
    if device.type != "cuda":
        return f"tensors on {device.type}, the kernels need CUDA or ROCm"
    try:
        capability = torch.cuda.get_device_capability(device)
    except (RuntimeError, AssertionError):
        return None  # No card here: the tensors have no values, and are meant for another machine.
    if torch.version.hip is None and capability < (8, 0):
        return f"compute capability {capability[0]}.{capability[1]}, the kernels need 8.0"
    return None


def failure() -> str | None:
    """Why :func:`give_up` was called, or None."""
    return _failures[0] if _failures else None


def give_up(error: Exception) -> None:
    """Do without the kernels from now on, because Triton failed to build or launch one; warn of it.

    Raises:
        Exception: the error itself if it is another one, as of CUDA, or about a mistake in the inputs.
    """
    if not _is_failure_of_triton(error):
        raise error
    text = " ".join(str(error).split())
    _failures.append(f"a kernel cannot be built or launched ({type(error).__name__}: {text[:500]})")
    warn(_failures[0])


def _is_failure_of_triton(error: Exception) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return False
    text = str(error)
    # The latter: a tensor of another device.
    if "CUDA error" in text or "Pointer argument" in text:
        return False
    if "Triton Error [" in text:
        return any(words in text for words in _LAUNCH_ERRORS)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return any(name.split(".")[0] == "triton" for name in modules)


@torch.compiler.assume_constant_result
def warn(reason: str) -> None:
    """Warn, once for each reason in a process, that attention runs without the kernels."""
    _warn(reason)


@cache
def _warn(reason: str) -> None:
    warnings.warn(
        f"focused linear attention runs without its fused kernels, slower than need be: {reason}",
        stacklevel=3,
    )


def __getattr__(name: str) -> Any:
    if name not in ("forward", "backward"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Kept, so that calls find it at once.
    globals()[name] = function = getattr(importlib.import_module(".launch", __name__), name)
    return function
