"""The options, the device and the machine of a benchmark: without these no figure means anything."""

import argparse
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ...cli import add_debug_option, check_least
from ...errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PACKAGES = (
    *("flatten-det", "torch", "torchvision", "triton", "timm", "numpy"),
    *("onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation"),
)
# Processes for each processor, in the last minute.
_BUSY = 0.5


def add_measuring_options(
    parser: argparse.ArgumentParser, candidates: str, rounds: int, warmup: int
) -> None:
    """Add ``--rounds``, ``--warmup``, ``--device``, ``--threads``, ``--no-memory`` and ``--debug``.

    ``candidates`` says what is compared, in the singular; ``rounds`` and ``warmup`` are the defaults.
    """
    parser.add_argument(
        "--rounds",
        type=int,
        default=rounds,
        help=f"in each, every {candidates} runs once (default: {rounds})",
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=warmup,
        help=f"calls before the first round (default: {warmup})",
    )
    add_device_options(parser)
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    add_debug_option(parser)


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--device`` and ``--threads``, for :func:`find_device`."""
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)"
    )
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: torch's)")


def add_out_option(parser: argparse.ArgumentParser, files: str) -> None:
    """Add ``--out``, the folder for the ``files``."""
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"folder for {files}")


def add_precision_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--dtype`` and ``--amp``."""
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["fp32"], help="one or more")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="bf16 and fp16 under autocast with parameters in fp32 (default: all in the dtype)",
    )


def check_measuring_options(
    parser: argparse.ArgumentParser, args: argparse.Namespace, **least: float
) -> None:
    """Exit with a usage error for ``--amp`` of fp32, and for numbers too small.

    ``least`` are the least values of options besides those above.
    """
    check_least(parser, args, {"rounds": 1, "warmup": 0, "threads": 1} | least)
    if args.amp and "fp32" in args.dtype:
        parser.error("argument --amp: needs --dtype bf16 or fp16, or both")


def find_device(name: str | None, threads: int | None = None) -> torch.device:
    """The device of that name, or UserError; None: the GPU, or else the CPU. ``threads`` are set."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: give cpu, cuda or cuda:1 and so on")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: torch finds no such GPU here; see `nvidia-smi`")
    if device.type == "cuda":
        # Without an index it is the current one, but `set_device` needs it.
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    return device


def describe_machine(device: torch.device) -> dict[str, object]:
    """Device, processor, threads, load and versions, for a JSON file."""
    return {
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def busy_remark() -> str | None:
    """One line if other processes keep the processors busy, to be asked before measuring; or None."""
    count = os.cpu_count()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    if not count or load < _BUSY * count:
        return None
    return (
        f"this machine is busy: {load:.1f} processes on {count} processors; times are not its own"
    )


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", information.read_text(), flags=re.MULTILINE)
        if found:
            return found[1]
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
