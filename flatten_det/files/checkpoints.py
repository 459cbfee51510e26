"""Checkpoint files: read as data, once, and held against the model they are meant for."""

import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner
from torch import Tensor, nn

from ..errors import CheckpointError, UserError, reason_of, warn_once
from .data_types import DATA_TYPES, finished
from .downloads import forget
from .user_files import why_not_read

# PyTorch calls what is in this list and in its own, and nothing else.
SAFE_GLOBALS = [(stand_in, name) for name, stand_in in DATA_TYPES.items()]


def load_as_data(
    file: str | Path | BinaryIO, map_location: Any = None, mmap: bool | None = None
) -> Any:
    """Read a file that :func:`torch.save` wrote, also an open one, or a ``.safetensors`` file.

    Other arguments are those of :func:`torch.load`; ``.safetensors`` come to the CPU.

    Raises:
        CheckpointError: The file holds something that would run code, or is compressed.
    """
    is_path = isinstance(file, str | Path)
    name = file if is_path else getattr(file, "name", file)
    if is_path and str(file).endswith(".safetensors"):
        return safetensors.torch.load_file(file)
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

    Compressed ones are a CheckpointError: PyTorch does not write them, but would unpack any size.
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
    return first[:300]  # It may quote the file.


def refusal(name: Any, reason: str) -> CheckpointError:
    """The error for a file that is not data."""
    return CheckpointError(
        f"checkpoint {name} cannot be read: it is damaged, or holds objects that could run code "
        f"({reason}): check that it is a complete PyTorch checkpoint from a source you trust; a local "
        "file that you made yourself is unpickled with --trust-checkpoint"
    )


# The files that were warned of, while there is trust.
_trusting: ContextVar[set[str] | None] = ContextVar("trusting", default=None)


@contextmanager
def trusted_checkpoints(trust: bool = True) -> Iterator[None]:
    """Unpickle local checkpoints within the block if they are not data, with a warning for each.

    A pickle runs whatever code is in it: for files that you have made yourself only. What is downloaded
    is never unpickled. With ``trust=False`` nothing is, even within another block.
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

    A CheckpointError if it is not trusted, or cannot be unpickled either.
    """
    try:
        return load_as_data(path, map_location)
    except CheckpointError:
        warned = _trusting.get()
        if warned is None:
            raise
    if str(path) not in warned:
        warned.add(str(path))
        warn_once(
            f"checkpoint {path} holds more than data and is unpickled all the same, which runs any code in "
            "it, because you trust it (--trust-checkpoint)"
        )
    try:
        return torch.load(path, map_location=map_location, weights_only=False)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be unpickled either ({reason_of(error)}): read it with the code "
            "that wrote it, and save its state_dict alone"
        ) from error


# Within checkpoints_read_once(): at most one checkpoint, under what it was read from.
_checked: ContextVar[dict[tuple | str, Any] | None] = ContextVar("checked", default=None)


@contextmanager
def checkpoints_read_once() -> Iterator[None]:
    """Within the block, a checkpoint that was read to be checked is not read again to be loaded.

    What was checked last waits in memory, until it is loaded, another one is checked or the block ends. A
    file that has changed since is read again.
    """
    token = _checked.set({})
    try:
        yield
    finally:
        _checked.reset(token)


def load_to_check(path: str | Path) -> Any:
    """:func:`load_local` onto the CPU for a check, which must not change the content."""
    checked, key = _checked.get(), _version(path)
    if checked and key in checked:
        return checked[key]
    if checked is None:
        return load_local(path, map_location="cpu")
    checked.clear()  # Before another one takes memory.
    return checked.setdefault(key, load_local(path, map_location="cpu"))


def keep_checked(url: str, content: Any) -> None:
    """Let the next load of a URL take this content, within :func:`checkpoints_read_once`."""
    if (checked := _checked.get()) is not None:
        checked.clear()
        checked[url] = content


def take_checked(source: str | Path) -> Any | None:
    """What was read to check this very file or URL, on the CPU, once; None if it must be read."""
    if not (checked := _checked.get()):
        return None
    return checked.pop(source if "://" in str(source) else _version(source), None)


def _version(path: str | Path) -> tuple:
    """What tells a file from another one of its name, and a trusted one from one read as data."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, is_trusting()


# Where the known training codes put the weights: mmengine, the official release (EMA weights are not
# what its tables report), CSwin's release, which has nothing else.
WEIGHT_KEYS = ("state_dict", "model", "state_dict_ema")
# Wrappers of a backbone inside a larger model: DistributedDataParallel, detectors and segmentors.
PREFIXES = ("module.", "backbone.")


def read_checkpoint(source: str | Path, prefix: str | None = None) -> dict[str, Tensor]:
    """A backbone's weights by name, on the CPU.

    Args:
        source: path of a ``.pth``/``.pt`` or ``.safetensors`` file, an http(s) URL, which is downloaded
            once into torch's hub folder, or what else mmengine loads: ``torchvision://``, ``open-mmlab://``,
            ``mmcls://`` and the like. The weights may lie at the top level or under ``state_dict`` or
            ``model``; of a whole detector or segmentor the backbone is taken.
        prefix: take the part of this name, such as ``'student.backbone.'``, instead.

    Raises:
        CheckpointError: if the file is missing, damaged, not a checkpoint, or holds anything but data.
    """
    if "://" not in str(source):
        return _weights(_read(Path(source).expanduser()), source, prefix)
    try:
        content = CheckpointLoader.load_checkpoint(str(source), "cpu", logger="silent")
        return _weights(content, source, prefix)
    except (CheckpointError, FileNotFoundError, ImportError, KeyError) as error:
        forget(str(source))
        reason = f"there is no model {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{source}: {reason}") from error


def _weights(state: object, source: str | Path, prefix: str | None) -> dict[str, Tensor]:
    for key in WEIGHT_KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    state = state if isinstance(state, dict) else {}
    state = {n: v for n, v in state.items() if isinstance(v, Tensor) and isinstance(n, str)}
    if not state:
        raise CheckpointError(f"{source}: no weights in it (no tensors, 'state_dict' or 'model')")
    if prefix is not None:
        state = _below(f"{prefix.removesuffix('.')}.", _below("module.", state) or state)
        if not state:
            raise CheckpointError(f"{source}: no weights in it whose names begin with {prefix!r}")
    for wrapper in PREFIXES:
        state = _below(wrapper, state) or state
    return state


def _below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _read(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        return load_local(path, map_location="cpu")
    except CheckpointError:
        raise
    except Exception as error:
        # A cut or foreign file fails in many ways (zip, EOF, key, header errors), all with the same cure.
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint; is it truncated? Download it again. "
            f"({reason_of(error)})"
        ) from error


def check_checkpoint(path: str) -> None:
    """Make sure that a checkpoint exists, and holds data only, unless it is a local one that is trusted.

    Raises:
        UserError: The file is missing, broken, or holds something other than data.
    """
    is_local = "://" not in str(path)
    if is_local and (reason := why_not_read(path)):
        reason = reason.removeprefix("was ")
        raise UserError(f"checkpoint {path} {reason}: check the path (here: {Path.cwd()})")
    try:
        if is_local:
            content = load_to_check(path)
        else:
            content = CheckpointLoader.load_checkpoint(path, "cpu", logger="silent")
            keep_checked(path, content)
    except CheckpointError as error:
        raise UserError(str(error)) from error
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read: {reason_of(error, '')}: "
            "check that it is a complete PyTorch checkpoint from a source you trust"
        ) from error
    _check_content(content, path)


def _check_content(content: Any, path: str) -> None:
    """A UserError unless mmengine finds weights by name, and what it was trained on, if anything."""
    meta = content.get("meta") or {} if isinstance(content, Mapping) else {}
    weights = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    if not isinstance(weights, Mapping) or not any(
        isinstance(weight, torch.Tensor) for weight in weights.values()
    ):
        problem = "it holds no weights (no state_dict of tensors by name)"
    elif not all(isinstance(name, str) for name in weights):
        problem = "it has weights whose names are no text"
    elif not isinstance(meta, Mapping) or not _describes_data(meta.get("dataset_meta")):
        problem = "its meta data is damaged"
    else:
        return
    raise UserError(f"checkpoint {path} cannot be used: {problem}: check that it is the right file")


def _describes_data(meta: Any) -> bool:
    """Whether this is what a data set says about itself: ``classes``, ``palette`` and more."""
    if not meta:
        return True
    if not isinstance(meta, Mapping) or not all(isinstance(key, str) for key in meta):
        return False
    classes = {key.lower(): value for key, value in meta.items()}.get("classes", ())
    # Results repeat a class's name for each object.
    return isinstance(classes, list | tuple) and all(
        isinstance(name, str) and len(name) <= 1000 for name in classes
    )


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, of one that is wrapped for distributed training."""
    return model.module if is_model_wrapper(model) else model


def check_fit(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str) -> None:
    """A UserError unless the checkpoint has every weight of the model, in the model's shape.

    mmengine only warns about the ones that it has not, and goes on with random ones.
    """
    weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    own = {
        name: weight
        for name, weight in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    bad = [
        name for name, weight in own.items()
        if getattr(weights.get(name), "shape", None) != weight.shape
    ]  # fmt: skip
    if bad:
        names = ", ".join(bad[:3]) + (", ..." if len(bad) > 3 else "")
        raise UserError(
            f"checkpoint {path} does not fit the config: {len(bad)} of {len(own)} weights are "
            f"missing or of another shape ({names}): use the config it was trained with"
        )


class CheckFitHook(Hook):
    """Applies :func:`check_fit` to the checkpoint that a Runner tests."""

    def __init__(self, path: str) -> None:
        self._path = path

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare before mmengine loads what fits."""
        model = unwrapped(runner.model)
        if isinstance(model, BaseTTAModel):
            model = model.module
        check_fit(model, checkpoint.get("state_dict", checkpoint), self._path)
