"""What mmengine calls to read checkpoints, pickle and YAML files: they are data only.

:mod:`.patches` puts these functions and classes in the place of mmengine's.
"""

import io
import os
import pickle
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch
import yaml
from mmengine.fileio.handlers import PickleHandler, YamlHandler

from ..errors import CheckpointError, UserError, reason_of
from ..files.checkpoints import load_as_data, load_local, refusal, refused_part, take_checked
from ..files.data_types import ALSO_DATA_TYPES, DATA_TYPES, Called, finished
from ..files.downloads import download, forget

# mmengine names the checkpoint with the best score so, and removes it when there is a better one.
_BEST = "best_"


def without_instructions(checkpoint: Any, folder: str | None) -> Any:
    """Take out of a checkpoint, in place, what is an instruction rather than a state.

    - ``meta['config']``, from MMDetection 2: when a run is resumed, mmengine executes this text as
      Python to compare the number of GPUs.
    - ``best_ckpt*`` of the logs: a path that mmengine removes on the next better score. It comes to mean
      the file of this name in the checkpoint's own folder, where a run writes it; also in a copied folder.
    - ``keep_ckpt_ids`` of the logs that are no whole numbers: they would be parts of such paths.
    - ``last_ckpt`` of the logs and ``meta['seed']``, which are printed, if they are no text or number.

    Anything but a dict is left alone. ``folder`` is where its file is; None if that is not where its run
    goes on, as for a download.
    """
    if not isinstance(checkpoint, dict):
        return checkpoint
    meta, hub = checkpoint.get("meta"), checkpoint.get("message_hub")
    if isinstance(meta, dict):
        meta.pop("config", None)
        if not isinstance(meta.get("seed"), int | np.integer):
            meta.pop("seed", None)
    if isinstance(hub, dict) and isinstance(hub.get("runtime_info"), dict):
        _correct_paths(hub["runtime_info"], folder)
        resumed = hub.get("resumed_keys")
        if isinstance(resumed, dict):
            gone = {"last_ckpt", *_path_keys(resumed)} - hub["runtime_info"].keys()
            for key in gone & resumed.keys():
                del resumed[key]
    return checkpoint


def _correct_paths(logs: dict[Any, Any], folder: str | None) -> None:
    ids = logs.get("keep_ckpt_ids")
    if ids is not None:
        logs["keep_ckpt_ids"] = [i for i in ids if type(i) is int] if type(ids) is list else []
    if type(logs.get("last_ckpt")) is not str:
        logs.pop("last_ckpt", None)
    for key in _path_keys(logs):
        name = os.path.basename(logs[key]) if type(logs[key]) is str else ""
        if folder is not None and name.startswith(_BEST):
            logs[key] = os.path.join(folder, name)
        else:
            del logs[key]


def _path_keys(logs: dict[Any, Any]) -> set[Any]:
    return {key for key in logs if isinstance(key, str) and key.startswith("best_ckpt")}


# Errors that name the file, or are none of the file's.
_AS_THEY_ARE = (CheckpointError, FileNotFoundError, PermissionError, MemoryError)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """What mmengine calls for a path: see :func:`load_file`."""
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename} can not be found.")
    return load_file(filename, map_location)


def load_file(
    file: str | io.BytesIO, map_location: Any = None, weights_only: bool | None = None
) -> Any:
    """What mmengine calls for a file: its signature, of which ``weights_only`` is not looked at.

    What was read to be checked is on the CPU, whatever the device: loading it into a model or an optimizer
    takes it to theirs.
    """
    is_local = isinstance(file, str | Path)
    try:
        checkpoint = take_checked(file) if is_local and _is_device(map_location) else None
        if checkpoint is None:
            load = load_local if is_local else load_as_data
            checkpoint = load(file, map_location)
    except _AS_THEY_ARE:
        raise
    except Exception as error:
        raise _explained(error, file) from error
    return without_instructions(checkpoint, os.path.dirname(file) if is_local else None)


def _is_device(map_location: Any) -> bool:
    """Not None, which means where the tensors were saved, nor a function."""
    return isinstance(map_location, str | torch.device)


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    check_hash: bool = False,
    file_name: str | None = None,
) -> Any:
    """In place of PyTorch's own, which unpacks zip files into its cache.

    Of the arguments of :func:`torch.hub.load_state_dict_from_url`, URL and device matter: each URL has its
    own place in the cache.
    """
    if _is_device(map_location) and (checkpoint := take_checked(url)) is not None:
        return checkpoint
    try:
        path = download(url)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {url} cannot be read ({error})") from error
    try:
        checkpoint = load_as_data(path, map_location)
    except MemoryError:
        raise
    except Exception as error:
        forget(url)
        explained = error if isinstance(error, CheckpointError) else _explained(error, url)
        raise CheckpointError(str(explained).replace(str(path), url)) from error
    return without_instructions(checkpoint, None)


def _explained(error: Exception, source: Any) -> CheckpointError:
    """An error that names the file."""
    if isinstance(error, pickle.UnpicklingError):
        return refusal(source, refused_part(error))
    reason = reason_of(error)
    if isinstance(error, OSError):
        return CheckpointError(f"checkpoint {source} cannot be read ({reason}): try again")
    return refusal(source, reason)


def _encode(text: str, encoding: str) -> bytes:
    """How old pickles write bytes; other codecs are none of data's business."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"codec {encoding} is not data")
    return text.encode("latin-1")


def _load_storage(content: bytes) -> Any:
    return load_as_data(io.BytesIO(content))


_CALLED = {
    **DATA_TYPES,
    **ALSO_DATA_TYPES,
    "_codecs.encode": _encode,
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
    "torch.storage._load_from_bytes": _load_storage,
    **{str(kind): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
}
# What the first protocols call by the names of Python 2.
_MODERN = {"__builtin__": "builtins", "copy_reg": "copyreg", "xrange": "range", "long": "int"}


class DataUnpickler(pickle.Unpickler):
    """Builds Python's own containers, numpy arrays and tensors, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle calls by this name, if that is what data is made of."""
        modern = f"{_MODERN.get(module, module)}.{_MODERN.get(name, name)}"
        if modern.startswith("mmengine.logging.history_buffer.HistoryBuffer."):
            return modern  # One of its statistics.
        if modern not in _CALLED:
            raise pickle.UnpicklingError(f"{module}.{name} is not data")
        found = _CALLED[modern]
        return Called(found) if callable(found) and not hasattr(found, "make") else found


class DataPickleHandler(PickleHandler):
    """Reads ``.pkl`` and ``.pickle`` files with a :class:`DataUnpickler`; writes them as before."""

    def load_from_fileobj(self, file: BinaryIO, **kwargs) -> Any:
        """Read an open file; a UserError if it is damaged, or holds something that would run code."""
        try:
            return finished(DataUnpickler(file, **kwargs).load(), _size(file))
        except Exception as error:
            raise UserError(
                f"a pickle file{_named(file)} (annotations, proposals or results) cannot be read: it is "
                f"damaged, or holds objects that could run code ({error}): write it anew as JSON, or as a "
                "pickle of dicts, lists, numpy arrays and tensors"
            ) from error


class _DataLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML's safe one, and tuples, which configs are full of."""


_DataLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node, deep=True)),
)


class DataYamlHandler(YamlHandler):
    """Reads YAML files without making objects of any class that they name."""

    def load_from_fileobj(self, file: TextIO, **kwargs) -> Any:
        """Read an open file; a UserError if it is damaged, or holds something that would run code."""
        try:
            return finished(yaml.load(file, Loader=_DataLoader), _size(file))
        except (yaml.YAMLError, pickle.UnpicklingError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"a YAML file{_named(file)} cannot be read: it is damaged, or asks for Python objects, "
                f"which could run code: {reason}: correct it"
            ) from error


def _size(file: BinaryIO | TextIO) -> int:
    """Bytes that were read of an open file, or characters."""
    return file.tell() if file.seekable() else 0


def _named(file: Any) -> str:
    name = getattr(file, "name", None)  # mmengine mostly passes on its content alone.
    return f" {name}" if isinstance(name, str) else ""
