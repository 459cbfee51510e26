"""Reading checkpoint files as data: tensors, numbers, texts and mmengine's logs; nothing is executed."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from .data_types import DATA_TYPES, finished
from .errors import CheckpointError

_LONGEST_REASON = 300
# PyTorch calls what is in this list and in its own, and nothing else.
SAFE_GLOBALS = [(stand_in, name) for name, stand_in in DATA_TYPES.items()]


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
    try:
        size = _checked_size(file)
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            content = torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)
        return finished(content, size)
    except pickle.UnpicklingError as error:
        raise refusal(name, refused_part(error)) from error
    except RuntimeError as error:
        # TorchScript, and the tar files of PyTorch before 0.4: their readers unpickle.
        if "weights_only=True" not in str(error):
            raise
        raise refusal(name, "TorchScript, or a format of PyTorch before 0.4") from error


def _checked_size(file: str | Path | BinaryIO) -> int:
    """Bytes of the file's pickle, or of all of a file that is no zip archive.

    Raises:
        CheckpointError: PyTorch stores tensors as they are; its reader would unpack compressed ones of any
            size.
    """
    if isinstance(file, str | Path):
        size = os.path.getsize(file)
    else:
        start = file.tell()
        size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return size  # An older format; or what PyTorch will complain of.
    finally:
        if not isinstance(file, str | Path):
            file.seek(start)
    unpacked = sum(info.file_size for info in members)
    # All but the source code in TorchScript, which is refused by name.
    packed = (info for info in members if "/code/" not in info.filename)
    if unpacked > 2 * size or any(info.compress_type != zipfile.ZIP_STORED for info in packed):
        raise CheckpointError(
            f"checkpoint {file} cannot be read: it would unpack to {unpacked / 1e6:.0f} MB, and PyTorch "
            "does not compress: it is not PyTorch's work, or damaged"
        )
    return sum(info.file_size for info in members if info.filename.endswith("data.pkl"))


def refused_part(error: pickle.UnpicklingError) -> str:
    """What PyTorch met, without its advice on how to run it."""
    met = error.__context__ if isinstance(error.__context__, pickle.UnpicklingError) else error
    first = (str(met).strip().splitlines() or ["no pickle"])[0].split(" was not an allowed")[0]
    return first[:_LONGEST_REASON]  # It may quote the file.


def refusal(name: Any, reason: str) -> CheckpointError:
    """The error for a file that is not data."""
    return CheckpointError(
        f"checkpoint {name} cannot be read: it is damaged, or holds objects that could run code "
        f"({reason}): check that it is a complete PyTorch checkpoint from a source you trust; a local "
        "file that you made yourself is unpickled with --trust-checkpoint"
    )
