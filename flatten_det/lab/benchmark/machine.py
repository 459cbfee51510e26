"""Where a benchmark ran: without it no figure means anything."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = (
    "flatten-det",
    "torch",
    "torchvision",
    "triton",
    "timm",
    "numpy",
    "onedl-mmcv",
    "onedl-mmdetection",
    "onedl-mmsegmentation",
)
# Processes for each processor, in the last minute.
_BUSY = 0.5


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
    if not hasattr(os, "getloadavg") or not count or os.getloadavg()[0] < _BUSY * count:
        return None
    load = os.getloadavg()[0]
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
