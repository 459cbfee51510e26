"""Unpickling one's own old checkpoints, where the user asks for it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .safe_loading import load_as_data

# The files that were warned of, while there is trust.
_trusting: ContextVar[set[str] | None] = ContextVar("trusting", default=None)


@contextmanager
def trusted_checkpoints(trust: bool = True) -> Iterator[None]:
    """Unpickle local checkpoints within the block if they are not data, with a warning for each.

    A pickle runs whatever code is in it: for files that you have made yourself only. What is downloaded
    is never unpickled.

    Args:
        trust: False: as without this block, and as before it where blocks are nested.
    """
    token = _trusting.set(set() if trust else None)
    try:
        yield
    finally:
        _trusting.reset(token)


def is_trusting() -> bool:
    """Whether this is within :func:`trusted_checkpoints`."""
    return _trusting.get() is not None


def load_local(path: str | Path, map_location: Any = None) -> Any:
    """Read a checkpoint as data; unpickle it where that fails and checkpoints are trusted.

    Raises:
        CheckpointError: The file holds something that would run code, and is not trusted or cannot be
            unpickled either.
    """
    try:
        return load_as_data(path, map_location)
    except CheckpointError:
        warned = _trusting.get()
        if warned is None:
            raise
    if str(path) not in warned:
        warned.add(str(path))
        if int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0:
            print(
                f"warning: checkpoint {path} holds more than data and is unpickled all the same, which "
                "runs any code in it, because you trust it (--trust-checkpoint)",
                file=sys.stderr,
            )
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:
        reason = (
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        )
        raise CheckpointError(
            f"checkpoint {path} cannot be unpickled either ({reason}): read it with the code that wrote "
            "it, and save its state_dict alone"
        ) from error
