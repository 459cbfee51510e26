"""mmengine's own loaders read checkpoints as data once flatten_det is imported."""

import io
import pickle
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace

import mmengine
import numpy as np
import pytest
import torch
from malicious_files import deflated
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from mmengine.structures import InstanceData
from safetensors.torch import save_file
from torch import nn

import flatten_det  # noqa: F401  lets mmengine read checkpoints as data
from flatten_det.errors import CheckpointError, UserError
from flatten_det.files.checkpoints import SAFE_GLOBALS, load_as_data


def test_nothing_but_data_is_allowed():
    """A new entry needs a thought: can it open, import or call what a file names?"""
    names = {name for _, name in SAFE_GLOBALS}
    builtins = {"list", "dict", "tuple", "int", "float", "str", "bool", "object", "bytes", "range"}
    builtins |= {"frozenset", "getattr", "slice"}
    dates = ["datetime", "date", "time", "timedelta", "timezone"]
    paths = ["PurePosixPath", "PureWindowsPath", "PosixPath", "WindowsPath"]
    functions = ["multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer"]
    assert names == {
        *(f"builtins.{name}" for name in builtins),
        *(f"datetime.{name}" for name in dates),
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in paths),
        *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in functions),
        *("numpy.dtype", "numpy.ndarray", "collections.defaultdict", "collections.deque"),
        *("copyreg._reconstructor", "argparse.Namespace", "types.SimpleNamespace"),
        *("mmengine.config.config.ConfigDict", "mmengine.logging.history_buffer.HistoryBuffer"),
        "mmengine.structures.base_data_element.BaseDataElement",
        "mmengine.structures.instance_data.InstanceData",
        "mmengine.structures.label_data.LabelData",
        "mmengine.structures.pixel_data.PixelData",
    }
    # They are allowed while a file is read, not for ever.
    assert not set(SAFE_GLOBALS) & set(torch.serialization.get_safe_globals())


SHARED = [1, 2]
DATA = {
    **{f"array of {kind}": np.ones(3, kind) for kind in "?bBhHiIlLefdgF"},
    "array of texts": np.array(["ab", "c"]),
    "array of bytes": np.array([b"ab", b""]),
    "array of times": np.array(["2026-01-01", "NaT"], "M8[25s]"),
    "array of durations": np.array([3], "m8[ns]"),
    "array with fields": np.array([(1, "a", [1, 2])], "u1,U3,(2,)f4"),
    "array of objects": np.array([{"a": deque([1])}, None], object),
    "big-endian array": np.arange(3, dtype=">i2"),
    "Fortran's array": np.arange(6.0).reshape(2, 3).T,
    "array of no dimension": np.array(3),
    "empty array": np.zeros((0, 4), np.uint8),
    "dtype": np.dtype("float16"),
    "scalars": [np.float16(0.5), np.uint8(7), np.bool_(True), np.str_("x"), np.datetime64(3, "D")],
    "keys": {np.int64(3): 1, np.str_("a"): 2, (1, "b"): 3, frozenset([4]): 5, Path("a"): 6},
    "defaults": defaultdict(list, a=[1], b=[2]),
    "defaults of defaults": {"a": (defaultdict(int), defaultdict(set, x={1}), defaultdict(None))},
    "Counter": Counter("banana"),
    "OrderedDict": OrderedDict(b=deque([1]), a=(deque(),)),
    "deques": [deque([1, [2]], maxlen=3), deque()],
    "paths": [Path("/a/b.pth"), PurePosixPath("c"), PureWindowsPath("C:/d")],
    "times": [datetime(2026, 1, 2, 3, 4, 5, 6), datetime(1, 1, 1, tzinfo=timezone.utc)],
    "dates": [date(2026, 12, 31), time(23, 59), timedelta(days=-1, microseconds=3)],
    "ConfigDict": ConfigDict(a=ConfigDict(b=[1, ConfigDict(c=(2,))]), type="X"),
    "arguments": Namespace(lr=0.1, output=Path("out"), nested=SimpleNamespace(a=[deque([1])])),
    "builtins": [slice(1, None, 2), range(3), 1j, {1}, frozenset([2]), bytearray(b"x"), b"\xff"],
    "shared": [SHARED, SHARED, {"a": SHARED}],
    "of torch": [torch.Size([2]), torch.device("cpu"), torch.float16],
}
READERS = {
    "checkpoint": (torch.save, lambda path: CheckpointLoader.load_checkpoint(str(path))),
    "old checkpoint": (
        lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda path: CheckpointLoader.load_checkpoint(str(path)),
    ),
    "pickle": (mmengine.dump, mmengine.load),
    "newest pickle": (lambda value, path: path.write_bytes(pickle.dumps(value, 5)), mmengine.load),
    "oldest pickle": (lambda value, path: path.write_bytes(pickle.dumps(value, 0)), mmengine.load),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", DATA)
def test_what_can_only_be_data_is_data(kind, reader, tmp_path):
    write, read = READERS[reader]
    write({"x": DATA[kind]}, tmp_path / "a.pkl")
    loaded = read(tmp_path / "a.pkl")["x"]
    assert type(loaded) is type(DATA[kind])
    assert repr(loaded) == repr(DATA[kind])
    if isinstance(loaded, np.ndarray):
        assert loaded.dtype == DATA[kind].dtype
        loaded[...] = loaded  # It is its own, and can be written to.
    if kind == "shared":
        assert loaded[0] is loaded[1] is loaded[2]["a"]


@pytest.mark.parametrize("reader", READERS)
def test_mmengines_records_are_data(reader, tmp_path):
    write, read = READERS[reader]
    boxes = InstanceData(scores=torch.tensor([0.5]), metainfo={"img_shape": (2, 3)})
    history = HistoryBuffer([1, 2.5], [1, 3], max_length=7)
    write({"boxes": boxes, "logs": history}, tmp_path / "a.pkl")
    loaded = read(tmp_path / "a.pkl")
    assert type(loaded["boxes"]) is InstanceData
    assert loaded["boxes"].img_shape == (2, 3)
    assert loaded["boxes"][0].scores.tolist() == [0.5]
    assert [values.tolist() for values in loaded["logs"].data] == [[1, 2.5], [1, 3]]
    assert loaded["logs"].max_length == 7
    assert loaded["logs"].statistics("max") == 2.5


class Forged:
    """Pickles to a call, and a state for its result."""

    def __init__(self, function, arguments=(), state=None):
        self.parts = (function, arguments, state)

    def __reduce__(self):
        return self.parts

    def __call__(self):
        """What is called must look so when it is written."""


def forged_dtype(kind: str, *state) -> Forged:
    return Forged(np.dtype, (kind, False, True), state)


def forged_array(shape, kind, content, order=False) -> Forged:
    return Forged(_rebuild_array, (np.ndarray, (0,), b"b"), (1, shape, kind, order, content))


_rebuild_array = np.zeros(1).__reduce__()[0]
_scalar = np.float32(1).__reduce__()[0]
_f8 = np.dtype("f8")
FORGED = {
    # Flags by which numbers would be taken for addresses of objects.
    "flags": forged_array(
        (1,), forged_dtype("O8", 3, "|", None, None, None, -1, -1, 63), b"12345678"
    ),
    "scalar of objects": Forged(_scalar, (np.dtype("O"), b"12345678")),
    "less than it says": forged_array((10**12,), _f8, b"12345678"),
    "nothing at all": forged_array((10**12,), np.dtype("V0"), b""),
    "product of 2**64": forged_array((2**32, 2**32), _f8, b""),
    "negative": forged_array((-1,), _f8, b"12345678"),
    "field outside": forged_array(
        (1,), forged_dtype("V8", 3, "|", None, ("a",), {"a": (_f8, 10**6)}, 8, 1, 0), b"12345678"
    ),
    "dtype of a text": Forged(np.dtype, ("i4,O", False, True)),
    "array out of nothing": Forged(np.ndarray, ((10**12,), "f8")),
    "method of another class": Forged(getattr, (dict, "get")),
    "method for logs": Forged(
        HistoryBuffer, (), {"max_length": 1, "_log_history": [1], "_count_history": [1]}
    ),
    "made by another": Forged(defaultdict, (print,)),
    "made by a list": Forged(list, ((1, 2),)),
    "deque of a range": Forged(deque, (range(10**12),)),
    "set of a range": Forged(frozenset, (range(10**12),)),
    "slice of lists": Forged(slice, ([1], 2)),
    "path of a list": Forged(PurePosixPath, (["a"],)),
    "month 255": Forged(datetime, (b"\x07\xea\xff\x01\x00\x00\x00\x00\x00\x00",)),
    "hour 255": Forged(datetime, (b"\x07\xea\x01\x01\xff\x00\x00\x00\x00\x00",)),
    "zone of another class": Forged(datetime, (b"\x07\xea\x01\x01" + bytes(6), "UTC")),
    "time without end": Forged(timedelta, (10**12,)),
    "state of a function": Forged(Forged(slice, (1,)), (), {"__defaults__": ()}),
    "names that are none": Forged(Namespace, (), {1: 2}),
    "defaults of ours": Forged(Forged(getattr, (HistoryBuffer, "mean")), ()),
    "call of what is looked up": Forged(
        Forged(getattr, (HistoryBuffer, "statistics")), (HistoryBuffer([1.0], [1]), "mean")
    ),
    "private name": Forged(getattr, (HistoryBuffer, "__init__")),
    "method of arrays": Forged(getattr, (np.ndarray, "dump")),
    "attribute of a dtype": Forged(getattr, (np.dtype, "type")),
}


@pytest.mark.parametrize("reader", ["checkpoint", "old checkpoint", "pickle", "newest pickle"])
@pytest.mark.parametrize("kind", FORGED)
def test_what_only_looks_like_data_is_refused(kind, reader, tmp_path):
    write, read = READERS[reader]
    write({"x": FORGED[kind]}, tmp_path / "a.pkl")
    with pytest.raises((CheckpointError, UserError), match="cannot be read"):
        read(tmp_path / "a.pkl")


def test_reading_changes_no_class():
    """mmengine's own way would put what a file says among the statistics of all logs."""
    content = io.BytesIO()
    state = vars(HistoryBuffer([1], [1])) | {"statistics_methods": {"mean": "stolen"}}
    torch.save(Forged(HistoryBuffer, (), state), content)
    content.seek(0)
    assert load_as_data(content).statistics("mean") == 1
    assert "stolen" not in HistoryBuffer._statistics_methods.values()


def laughs(depth: int = 26) -> list:
    text = ["lol"]
    for _ in range(depth):
        text = [text, text]
    return text


def itself() -> list:
    text = []
    text.append(text)
    return text


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (laughs(), "would unfold to more than 1000000 items"),
        ({"a": (deque([laughs()]), 1)}, "would unfold"),
        (Namespace(a=ConfigDict(), b=Forged(ConfigDict, ({"x": laughs()},))), "would unfold"),
        ([["lol" * 10_000] * 2000] * 3, "would unfold"),
        (itself(), "contains itself"),
    ],
    ids=["lists", "deques", "configs", "texts", "itself"],
)
def test_what_unfolds_without_measure_is_refused(content, reason, reader, tmp_path):
    """26 lists of twice the one before are 300 bytes in a file, and a text of 500 MB."""
    write, read = READERS[reader]
    write({"meta": content}, tmp_path / "a.pkl")
    with pytest.raises((CheckpointError, UserError), match=reason):
        read(tmp_path / "a.pkl")


def test_compressed_checkpoints_are_not_unpacked(tmp_path):
    """PyTorch stores tensors as they are, so a small file cannot hold a large one."""
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(10_000_000)}, plain)
    bomb.write_bytes(deflated(plain.read_bytes()))
    assert bomb.stat().st_size < 100_000
    assert load_as_data(plain)["weight"].numel() == 10_000_000
    with pytest.raises(
        CheckpointError, match=r"bomb\.pth cannot be read: it would unpack to 40 MB"
    ):
        load_as_data(bomb)


def test_even_what_hardly_shrinks_is_not_unpacked(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"weight": torch.rand(1000)}, path)
    path.write_bytes(deflated(path.read_bytes()))
    for file in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(CheckpointError, match="PyTorch does not compress"):
            load_as_data(file)


def test_torchscript_is_refused_as_such(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_as_data(tmp_path / "a.pth")


def test_safetensors_are_read(tmp_path):
    weights = nn.Linear(2, 2).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    model = nn.Linear(2, 2)
    load_checkpoint(model, str(tmp_path / "a.safetensors"), strict=True)
    assert torch.equal(model.weight, weights["weight"])
