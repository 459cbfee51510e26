"""What the memory of the machine can do, for comparison."""

import torch

from .timing import alternate, clock_of

# Far larger than any cache.
_BYTES = {"cuda": 2**30, "cpu": 2**28}
_ROUNDS = 10


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second of a copy of a large tensor, each byte counted as read and as written.

    The copy goes to memory that was touched before, so that a CPU has no pages to provide.
    """
    size = _BYTES["cuda" if device.type == "cuda" else "cpu"]
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    timings, _ = alternate({"copy": lambda: target.copy_(source)}, _ROUNDS, 2, clock_of(device))
    return 2 * size / timings["copy"].median
