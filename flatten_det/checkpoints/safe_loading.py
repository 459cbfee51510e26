"""Reading checkpoint files as data: tensors, numbers, texts and mmengine's logs; nothing is executed."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from .errors import CheckpointError


def _history_buffer_method(owner: type, name: str) -> Any:
    """Stands for ``getattr``, by which a pickled HistoryBuffer names its own statistics."""
    if owner is not HistoryBuffer or name.startswith("_"):
        raise pickle.UnpicklingError(f"attribute {name} of {owner} is not data")
    return getattr(owner, name)


# What an mmengine checkpoint holds besides tensors: the message hub's logs and their numbers. None of them
# opens, imports or calls anything that a file names: PyTorch calls what is in this list and nothing else,
# and what the stand-in for getattr returns is not in it.
_np_core = np._core if hasattr(np, "_core") else np.core
SAFE_GLOBALS = [
    HistoryBuffer,
    (_history_buffer_method, "builtins.getattr"),
    np.ndarray,
    np.dtype,
    _np_core.multiarray._reconstruct,
    _np_core.multiarray.scalar,
    *(type(np.dtype(kind)) for kind in ("float32", "float64", "int32", "int64", "uint32", "bool")),
]


def load_as_data(
    file: str | Path | BinaryIO, map_location: Any = None, mmap: bool | None = None
) -> Any:
    """Read a file that :func:`torch.save` wrote, or a ``.safetensors`` file.

    Args:
        file: path, or an open file of PyTorch's.
        map_location: as for :func:`torch.load`; ``.safetensors`` come to the CPU.
        mmap: leave tensors in the file until they are used.

    Raises:
        CheckpointError: The file holds something that would run code, or is compressed.
    """
    is_path = isinstance(file, str | Path)
    name = file if is_path else getattr(file, "name", file)
    if is_path and str(file).endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    if is_path:
        _check_is_plain(file)
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise refusal(name, refused_part(error)) from error
    except RuntimeError as error:
        # TorchScript, and the tar files of PyTorch before 0.4: their readers unpickle.
        if "weights_only=True" not in str(error):
            raise
        raise refusal(name, "TorchScript, or a format of PyTorch before 0.4") from error


def _check_is_plain(path: str | Path) -> None:
    """PyTorch stores tensors as they are; its reader would unpack compressed ones of any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return  # An older format; or what PyTorch will complain of.
    if unpacked > 2 * os.path.getsize(path):
        raise CheckpointError(
            f"checkpoint {path} cannot be read: it would unpack to {unpacked / 1e6:.0f} MB, and PyTorch "
            "does not compress: it is not PyTorch's work, or damaged"
        )


def refused_part(error: pickle.UnpicklingError) -> str:
    """What PyTorch met, without its advice on how to run it."""
    met = error.__context__ if isinstance(error.__context__, pickle.UnpicklingError) else error
    return (str(met).strip().splitlines() or ["no pickle"])[0].split(" was not an allowed")[0]


def refusal(name: Any, reason: str) -> CheckpointError:
    """The error for a file that is not data."""
    return CheckpointError(
        f"checkpoint {name} cannot be read: it is damaged, or holds objects that could run code "
        f"({reason}): check that it is a complete PyTorch checkpoint from a source you trust; a local "
        "file that you made yourself is unpickled with --trust-checkpoint"
    )
