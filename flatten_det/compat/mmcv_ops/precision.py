"""The dtype that the ops compute in."""

import torch


def at_least_float32(x):
    """Return ``x`` in float32, or as it is where it is wider.

    Half-precision results are rounded once, on the way into the caller's tensor; torchvision does
    the same with its own operators under autocast.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
