"""Reading checkpoints of mmengine as data, also where mmengine itself reads them."""

import pickle
from typing import Any, BinaryIO

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .errors import CheckpointError


def _history_buffer_method(owner: type, name: str) -> Any:
    """Stands for ``getattr``, by which a pickled HistoryBuffer names its own statistics."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError(f"attribute {name} of {owner} is not data")
    return getattr(owner, name)


# What an mmengine checkpoint holds besides tensors: the message hub's logs and their numbers.
_np_core = np._core if hasattr(np, "_core") else np.core
_SAFE_GLOBALS = [
    HistoryBuffer,
    (_history_buffer_method, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    _np_core.multiarray._reconstruct,
    _np_core.multiarray.scalar,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "uint32", "bool")),
]


def load_as_data(
    file: str | BinaryIO,
    map_location: Any = None,
    weights_only: bool | None = None,
    mmap: bool | None = None,
) -> Any:
    """Read a file that :func:`torch.save` wrote; tensors, numbers and mmengine's logs, no other objects.

    The signature is that of the function in mmengine that it takes the place of. ``weights_only`` is not
    looked at: it is always on. ``mmap``: leave tensors in the file until they are used.

    Raises:
        CheckpointError: The file holds something that would run code.
    """
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS):
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).rsplit("WeightsUnpickler error: ", 1)[-1].strip()
        reason = reason.split("\n")[0].split(" was not an allowed")[0]
        name = getattr(file, "name", file)
        raise CheckpointError(
            f"checkpoint {name} cannot be read: it is damaged, or holds objects that could run code "
            f"({reason}): check that it is a complete PyTorch checkpoint from a source you trust"
        ) from error


def read_mmengine_checkpoints_as_data() -> None:
    """Let mmengine refuse files that hold code.

    The maintained distribution of mmengine reads a file that fails to load as data once more without any
    restriction, so that a malicious file runs its code after a mere warning. It does so in one function,
    through which every loader goes. The original mmengine has no such function and no second attempt.
    """
    if hasattr(mmengine_checkpoint, "_safe_torch_load"):
        mmengine_checkpoint._safe_torch_load = load_as_data
