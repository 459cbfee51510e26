"""What is data in a pickle: numbers, texts, containers, arrays, dates, paths, and mmengine's records.

A file calls what it names with whatever it likes. So each name stands for something of ours, which takes
nothing but data, or keeps it until the file is read, to make the object then of parts that were checked
(:func:`finished`). No ``__setstate__`` but ours sees what a file says: numpy's would take flags by which
numbers become addresses.
"""

import argparse
import datetime
import math
import os
import pathlib
import re
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.structures import BaseDataElement, InstanceData, LabelData, PixelData

_FACTORIES = {
    f"builtins.{kind.__name__}": kind for kind in (list, dict, tuple, int, float, str, bool)
}
_DTYPE = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[USV]\d{1,9}|O[48]|[Mm]8")
_UNIT = re.compile(rb"[A-Za-z]{1,7}|\xce\xbcs")
# Items that a file of that many bytes may unfold to, when one list that it names a hundred times counts a
# hundred times: in a text or a copy of it.
_UNFOLDED_PER_BYTE, _UNFOLDED = 8, 1_000_000
_TEXT_PER_ITEM = 16
_NUMBERS = frozenset((int, float, bool, type(None)))


class _Name:
    """Stands for what a file names only to pass it on."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        raise UnpicklingError(f"a state of {self.name} is not data")


class _Kept:
    """What a file says of an object, until all of it is read."""

    __slots__ = ("args", "state")
    __hash__ = None  # Nor can a set or a key hide it.

    def __new__(cls, *args: Any) -> "_Kept":
        self = super().__new__(cls)
        self.args, self.state = args, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @staticmethod
    def make(args: tuple, state: Any) -> Any:
        """The object, of finished parts; any error means that they are not its parts."""
        raise NotImplementedError


def _kept(make: Callable[[tuple, Any], Any]) -> type[_Kept]:
    return type(make.__name__, (_Kept,), {"__slots__": (), "make": staticmethod(make)})


def _need(condition: bool, what: str) -> None:
    if not condition:
        raise UnpicklingError(f"what it says of {what} is not data")


def _dtype(args: tuple, state: Any) -> np.dtype:
    _need(isinstance(args[0], str) and _DTYPE.fullmatch(args[0]) is not None, "a dtype")
    kind = args[0]
    if state is None:
        return np.dtype(kind)
    _, order, shaped, names, fields, size, *_ = state
    if shaped is not None:
        return np.dtype((shaped[0], shaped[1]))
    if names is not None:
        formats, offsets = ([fields[name][n] for name in names] for n in (0, 1))
        whole = {"names": list(names), "formats": formats, "offsets": offsets, "itemsize": size}
        # Unlike __setstate__, this checks that the parts lie within the whole.
        return np.dtype(whole)
    if kind in ("M8", "m8"):
        unit, count, *_ = state[-1][1]
        unit = unit.encode() if isinstance(unit, str) else unit
        _need(_UNIT.fullmatch(unit) is not None and type(count) is int, "a dtype")
        kind += "" if unit == b"generic" else f"[{count}{unit.decode()}]"
    _need(order in ("<", ">", "=", "|"), "a dtype")
    return np.dtype(order + kind)


def _filled(shape: Any, dtype: Any, fortran: Any, content: Any) -> np.ndarray:
    """A new array, if the content is all of it."""
    sizes_fit = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    _need(sizes_fit and isinstance(dtype, np.dtype), "an array")
    count, order = math.prod(shape), "F" if fortran else "C"
    if dtype.kind == "O":
        _need(type(content) is list and len(content) == count, "an array")
        array = np.empty(count, object)
        for index, item in enumerate(content):
            array[index] = item
        return np.asarray(array.reshape(shape), order=order)
    _need(isinstance(content, bytes | bytearray) and not dtype.hasobject, "an array")
    _need(count * dtype.itemsize == len(content) and count <= max(len(content), 1), "an array")
    return np.ndarray(shape, dtype, content, order=order).copy("K")


def _array(args: tuple, state: Any) -> np.ndarray:
    return _filled(*state[-4:])


def _buffered(args: tuple, state: Any) -> np.ndarray:
    """numpy's way since protocol 5."""
    content, dtype, shape, order, *axes = args
    array = _filled(shape, dtype, order == "F", content)
    return array.transpose(axes[0]) if axes and axes[0] is not None else array


def _scalar(dtype: _Kept, content: Any = None) -> np.generic:
    return _filled((), _Finisher()(dtype)[0], False, content)[()]


def _history(args: tuple, state: Any) -> HistoryBuffer:
    logs, counts, most = state["_log_history"], state["_count_history"], state["max_length"]
    for values in (logs, counts):
        is_array = isinstance(values, np.ndarray)
        _need(is_array and values.ndim == 1 and values.dtype.kind in "biuf", "logs")
    _need(type(most) is int and most > 0, "logs")
    return HistoryBuffer(logs, counts, most)


def _attribute(owner: Any, name: str) -> str:
    """Stands for ``getattr``, by which logs name their own statistics: nothing that can be called."""
    _need(owner is _History and isinstance(name, str) and name[:1] != "_", "an attribute")
    return f"HistoryBuffer.{name}"


def _config(args: tuple, state: Any) -> ConfigDict:
    config = ConfigDict()
    dict.update(config, args[0])  # Its own method would copy lists within lists again and again.
    return config


def _record(kind: type) -> type[_Kept]:
    """An object of nothing but named parts."""

    def make(args: tuple, state: Any) -> Any:
        record = kind.__new__(kind)
        _need(all(isinstance(name, str) for name in state or {}), kind.__name__)
        vars(record).update(state or {})
        return record

    return _kept(make)


class _Maxlen(_Name):
    """The first item of a list that is to be a deque: PyTorch appends to lists alone."""


_FACTORY = _Name("a default")  # The first key of a dict that is to be a defaultdict.


def _deque(items: Any = (), maxlen: int | None = None) -> list:
    _need(isinstance(items, list | tuple), "a deque")
    _need(maxlen is None or (type(maxlen) is int and maxlen >= 0), "a deque")
    return [_Maxlen(maxlen), *items]


def _defaultdict(factory: Any = None) -> dict:
    factory = getattr(factory, "function", factory)
    if isinstance(factory, _Name):
        factory = _FACTORIES.get(factory.name)
        _need(factory is not None, "a defaultdict")
    else:
        ours = {id(_SET): set, id(_counter): Counter}
        factory = ours.get(id(factory), factory)
        _need(any(factory is kind for kind in (None, set, OrderedDict, Counter)), "a defaultdict")
    return {_FACTORY: factory}


def _members(kind: type) -> Callable[[Any], Any]:
    """Of a list alone: other things that can be iterated need not be as small as the file."""

    def make(items: Any = ()) -> Any:
        _need(isinstance(items, list | tuple), f"a {kind.__name__}")
        return kind(items)

    return make


def _range(args: tuple, state: Any) -> range:
    return range(*args)


def _slice(*parts: Any) -> slice:
    _need(all(part is None or type(part) is int for part in parts), "a slice")
    return slice(*parts)


def _no_bytes() -> bytes:
    """How old pickles write empty ones."""
    return b""


def _bytearray(content: Any = b"", encoding: str = "latin-1") -> bytearray:
    content = content.encode("latin-1") if isinstance(content, str) else content
    _need(isinstance(content, bytes), "bytes")
    return bytearray(content)


def _counter(content: Any = ()) -> Counter:
    _need(isinstance(content, dict), "a Counter")
    return Counter(content)


def _path(kind: type[pathlib.PurePath]) -> Callable[..., pathlib.PurePath]:
    def make(*parts: Any) -> pathlib.PurePath:
        _need(all(isinstance(part, str) for part in parts), "a path")
        return kind(*parts)

    return make


def _moment(kind: type) -> Callable[..., Any]:
    def make(content: Any, zone: Any = None) -> Any:
        content = content.encode("latin-1") if isinstance(content, str) else content
        _need(isinstance(content, bytes), "a time")
        _need(zone is None or isinstance(zone, datetime.timezone), "a time zone")
        moment = kind(content) if zone is None else kind(content, zone)
        return moment.replace()  # Which checks the numbers, as the constructor does not.

    return make


def _reconstructed(kind: Any, base: Any = None, state: Any = None) -> _Kept:
    """Stands for ``copyreg``'s function for objects, of the first protocols."""
    _need(isinstance(kind, type) and issubclass(kind, _Kept), "an object")
    return kind()


_History = _kept(_history)
_native_path = pathlib.WindowsPath if os.name == "nt" else pathlib.PosixPath
_PATHS = {
    "PurePosixPath": pathlib.PurePosixPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
    "PosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath,
    _native_path.__name__: _native_path,
}
_NUMPY = {
    "multiarray._reconstruct": _kept(_array),
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _kept(_buffered),
}
_RECORDS = (
    argparse.Namespace,
    types.SimpleNamespace,
    BaseDataElement,
    InstanceData,
    LabelData,
    PixelData,
)
# By the names in pickles. None opens, imports or calls anything that a file names, makes anything larger than
# what the file holds, or changes anything but what it makes.
DATA_TYPES: dict[str, Any] = {
    **{name: _Name(name) for name in (*_FACTORIES, "builtins.object", "numpy.ndarray")},
    "builtins.bytes": _no_bytes,
    "builtins.frozenset": _members(frozenset),
    "builtins.getattr": _attribute,
    "builtins.range": _kept(_range),
    "builtins.slice": _slice,
    "collections.defaultdict": _defaultdict,
    "collections.deque": _deque,
    "copyreg._reconstructor": _reconstructed,
    "datetime.datetime": _moment(datetime.datetime),
    "datetime.date": _moment(datetime.date),
    "datetime.time": _moment(datetime.time),
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "mmengine.config.config.ConfigDict": _kept(_config),
    "mmengine.logging.history_buffer.HistoryBuffer": _History,
    "numpy.dtype": _kept(_dtype),
    **{f"numpy.{core}.{n}": kind for core in ("core", "_core") for n, kind in _NUMPY.items()},
    **{
        f"pathlib{place}.{name}": _path(kind)
        for place in ("", "._local")
        for name, kind in _PATHS.items()
    },
    **{f"{kind.__module__}.{kind.__qualname__}": _record(kind) for kind in _RECORDS},
}
_SET = _members(set)
# What PyTorch's reader allows by itself.
ALSO_DATA_TYPES: dict[str, Any] = {
    "builtins.bytearray": _bytearray,
    "builtins.complex": complex,
    "builtins.set": _SET,
    "collections.Counter": _counter,
    "collections.OrderedDict": OrderedDict,
}


class Called:
    """A function that pickles may call, and cannot change."""

    __slots__ = ("function",)

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __setstate__(self, state: Any) -> None:
        raise UnpicklingError("a state of a function is not data")


class _Finisher:
    """Puts objects in the place of what was kept of them, and measures how far everything unfolds."""

    def __init__(self) -> None:
        # By identity: the item, which keeps it from being another's, and what came of it.
        self._known: dict[int, tuple[Any, tuple[Any, int] | None]] = {}

    def __call__(self, item: Any) -> tuple[Any, int]:
        kind = type(item)
        if kind in (str, bytes, bytearray):
            return item, 1 + len(item) // _TEXT_PER_ITEM
        if not isinstance(item, _Kept) and kind not in self._WALKS:
            return item, 1
        if id(item) not in self._known:
            self._known[id(item)] = (item, None)
            done = self._kept(item) if isinstance(item, _Kept) else self._WALKS[kind](self, item)
            self._known[id(item)] = (item, done)
        done = self._known[id(item)][1]
        _need(done is not None, "something that contains itself")
        return done

    def _kept(self, item: _Kept) -> tuple[Any, int]:
        (args, state), size = self._tuple((item.args, item.state))
        try:
            return item.make(args, state), size
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UnpicklingError(f"a {type(item).__name__.strip('_')} that is none") from error

    def _dict(self, item: dict) -> tuple[Any, int]:
        total = 1
        for mapping in (item, *([] if type(item) is dict else [vars(item)])):
            for key, child in mapping.items():
                value, size = self(child)
                total += size + self(key)[1]
                if value is not child:
                    mapping[key] = value
        if _FACTORY in item:
            return defaultdict(item.pop(_FACTORY), item), total
        return item, total

    def _list(self, item: list) -> tuple[Any, int]:
        values, size = self._tuple(item)
        item[:] = values
        if item and isinstance(item[0], _Maxlen):
            return deque(item[1:], item[0].name), size
        return item, size

    def _tuple(self, item: tuple | list) -> tuple[Any, int]:
        if _NUMBERS.issuperset(map(type, item)):
            return item, 1 + len(item)
        done = [self(child) for child in item]
        size = 1 + sum(size for _, size in done)
        same = all(value is child for (value, _), child in zip(done, item, strict=True))
        return item if same else tuple(value for value, _ in done), size

    def _set(self, item: set | frozenset) -> tuple[Any, int]:
        return item, 1 + sum(self(member)[1] for member in item)

    _WALKS = {  # noqa: RUF012
        **dict.fromkeys((dict, OrderedDict, Counter), _dict),
        **dict.fromkeys((set, frozenset), _set),
        list: _list,
        tuple: _tuple,
    }


def finished(content: Any, size: int) -> Any:
    """What a file holds, from what its reader made of it, in place.

    ``size`` is that of the file, or of its part that is a pickle, in bytes.

    Raises:
        UnpicklingError: Something in it is not what it claims to be, contains itself, or repeats so often
            that a text or a copy of it would be without measure.
    """
    try:
        content, unfolded = _Finisher()(content)
    except RecursionError as error:
        raise UnpicklingError("it is nested too deeply") from error
    if unfolded > max(_UNFOLDED, _UNFOLDED_PER_BYTE * size):
        raise UnpicklingError(f"{size} bytes would unfold to more than {_UNFOLDED} items")
    return content
