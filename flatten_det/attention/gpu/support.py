"""Whether the kernels can be used: in this process, and for a call."""

import importlib
import os
import shutil
import warnings
from functools import cache
from pathlib import Path
from traceback import walk_tb

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
    """Whether the kernels serve a call, with p = 3.

    Args:
        device: of q, k and v.
        dtypes: of q, k and v.
        channels: C.
        num_heads: h.
        has_fewer_keys: than queries.
        is_empty: there are no tokens.

    Returns:
        None, or in a few words why not.
    """
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
    return _machine_reason(device)


@torch.compiler.assume_constant_result
def _machine_reason(device: torch.device) -> str | None:
    return unavailable_reason() or _device_reason(device)


def _device_reason(device: torch.device) -> str | None:
    if device.type == "cpu":
        interpreted = importlib.import_module(".launch", __package__).interpreted()
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
