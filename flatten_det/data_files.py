"""Pickle and YAML files as data where mmengine loads them: annotations, proposals, results."""

import io
import pickle
from typing import Any, BinaryIO, TextIO

import torch
import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler, YamlHandler

from .checkpoints.data_types import ALSO_DATA_TYPES, DATA_TYPES, Called, finished
from .checkpoints.safe_loading import load_as_data
from .engine.errors import UserError


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
