"""mmengine reads checkpoints, pickle and YAML files as data only."""

import io
import os
import pickle
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import mmengine.runner.checkpoint as mmengine_checkpoint
import mmengine.utils.dl_utils as dl_utils
import numpy as np
import torch
import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler
from mmengine.infer.infer import BaseInferencer
from mmengine.runner import CheckpointLoader

from ..errors import CheckpointError, UserError
from ..files.checkpoints import (
    download,
    forget,
    is_trusting,
    load_as_data,
    load_local,
    refusal,
    refused_part,
)
from ..files.data_types import ALSO_DATA_TYPES, DATA_TYPES, Called, finished

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

    Args:
        checkpoint: as it was read; anything but a dict is left alone.
        folder: where its file is; None if that is not where its run goes on, as for a download.

    Returns:
        The checkpoint.
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
            for key in {"last_ckpt", *_path_keys(resumed)} & resumed.keys() - hub[
                "runtime_info"
            ].keys():
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


def read_mmengine_checkpoints_as_data() -> None:
    """Let all loaders of mmengine refuse files that hold code.

    Left to themselves,

    - the maintained distribution reads a local file that fails to load as data once more without any
      restriction, after a mere warning;
    - both distributions unpickle what they download, and unpack it among the other downloads;
    - both execute texts in checkpoints: see :mod:`.instructions`, and inferencers that get no config.

    Each of these happens in one function, through which ``load_from``, resuming, ``init_cfg``,
    ``init_detector`` and all others go.
    """
    if hasattr(mmengine_checkpoint, "_safe_torch_load"):
        mmengine_checkpoint._safe_torch_load = _load_file
    else:
        CheckpointLoader.register_scheme(prefixes="", loader=load_from_local, force=True)
    for module in (mmengine_checkpoint, dl_utils, dl_utils.hub):
        module.load_url = _load_url
    BaseInferencer._init_model = _with_config_given(BaseInferencer._init_model)


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """What mmengine calls for a path: see :func:`~flatten_det.files.checkpoints.load_local`.

    Raises:
        CheckpointError: The file cannot be read as data.
        FileNotFoundError: There is none.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename} can not be found.")
    return _load_file(filename, map_location)


def _load_file(
    file: str | io.BytesIO, map_location: Any = None, weights_only: bool | None = None
) -> Any:
    """mmengine's signature; ``weights_only`` is not looked at."""
    is_local = isinstance(file, str | Path)
    try:
        checkpoint = (
            load_local(file, map_location) if is_local else load_as_data(file, map_location)
        )
    except _AS_THEY_ARE:
        raise
    except Exception as error:
        raise _explained(error, file) from error
    return without_instructions(checkpoint, os.path.dirname(file) if is_local else None)


def _load_url(
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
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0] if lines else 'no detail'}"
    if isinstance(error, OSError):
        return CheckpointError(f"checkpoint {source} cannot be read ({reason}): try again")
    return refusal(source, reason)


def _with_config_given(init_model: Any) -> Any:
    @wraps(init_model)
    def checked(self, cfg: Any, weights: str | None, device: str = "cpu") -> torch.nn.Module:
        if not cfg and not is_trusting():
            raise CheckpointError(
                f"checkpoint {weights} comes without a config: give the config file, too; the one in the "
                "checkpoint is not used, because configs are code (for a checkpoint of your own: within "
                "flatten_det.files.checkpoints.trusted_checkpoints())"
            )
        return init_model(self, cfg, weights, device)

    return checked


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
        """What the pickle calls by this name.

        Raises:
            pickle.UnpicklingError: It is not what data is made of.
        """
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
        """Read an open file.

        Raises:
            UserError: It is damaged, or holds something that would run code.
        """
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
        """Read an open file.

        Raises:
            UserError: It is damaged, or holds something that would run code.
        """
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


def read_mmengine_files_as_data() -> None:
    """Let ``mmengine.load``, and with it data sets and metrics, refuse files that hold code."""
    register_handler(["pkl", "pickle"])(DataPickleHandler)
    register_handler(["yaml", "yml"])(DataYamlHandler)
