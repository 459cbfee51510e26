"""Pickle and YAML files that mmengine loads are data."""

import io
import pickle
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
import torch
from malicious_files import Command
from mmengine.dataset import BaseDataset

import flatten_det  # noqa: F401  lets mmengine read them so
from flatten_det.errors import UserError


class Calls:
    """Pickles to the call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


RESULTS = {
    "img_id": 3,
    "name": "a",
    "raw": b"\x00\xff",
    "labels": {1, 2},
    "ordered": OrderedDict(a=1),
    "scores": np.arange(3.0),
    "score": np.float32(0.5),
    "column": np.zeros((3, 2), np.int64, order="F"),
    "names": np.array(["a", "bc"]),
    "objects": np.array([{"a": 1}, None], dtype=object),
    "boxes": torch.rand(2, 4),
    "kinds": [torch.ones(2, dtype=kind) for kind in (torch.bool, torch.uint8, torch.half)],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_results_come_back(protocol, tmp_path):
    path = tmp_path / "results.pkl"
    path.write_bytes(pickle.dumps(RESULTS, protocol))
    loaded = mmengine.load(path)
    assert repr(loaded) == repr(RESULTS)
    assert torch.equal(loaded["boxes"], RESULTS["boxes"])
    assert loaded["column"].dtype == np.int64


def test_what_mmengine_dumps_comes_back(tmp_path):
    mmengine.dump([RESULTS], tmp_path / "results.pickle")
    assert repr(mmengine.load(tmp_path / "results.pickle")) == repr([RESULTS])


def test_no_command_in_an_annotation_file_runs(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "train.pkl"
    annotations = {"metainfo": {}, "data_list": [{"img_path": "a.jpg", "extra": Command(marker)}]}
    path.write_bytes(pickle.dumps(annotations))
    with pytest.raises(UserError, match=r"a pickle file .*could run code \(posix\.system is not"):
        BaseDataset(ann_file=str(path))
    assert not marker.exists()


def test_no_command_in_a_stored_tensor_runs(tmp_path):
    """A tensor in a pickle is a file of PyTorch's within it."""
    marker, inner = tmp_path / "marker", io.BytesIO()
    torch.save(Command(marker), inner)
    content = pickle.dumps(Calls(torch.storage._load_from_bytes, inner.getvalue()))
    with pytest.raises(UserError, match=r"posix\.system"):
        mmengine.load(io.BytesIO(content), file_format="pkl")
    assert not marker.exists()


@pytest.mark.parametrize(
    "call",
    [
        Calls(eval, "1"),
        Calls(getattr, dict, "get"),
        Calls(__import__, "os"),
        Calls(torch.load, "x"),
        Calls(np.load, "x", None, True),
        Calls(b"".__class__.fromhex, "00"),
    ],
    ids=["eval", "getattr", "import", "torch.load", "np.load", "method"],
)
def test_nothing_else_is_called(call):
    content = io.BytesIO(pickle.dumps(call))
    with pytest.raises(UserError, match="is not data"):
        mmengine.load(content, file_format="pkl")


def test_other_codecs_are_refused():
    content = pickle.dumps(RESULTS["raw"], protocol=2).replace(b"latin1", b"utf-16")
    with pytest.raises(UserError, match="codec utf-16 is not data"):
        mmengine.load(io.BytesIO(content), file_format="pkl")


def test_yaml_makes_no_objects(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "a.yaml"
    path.write_text(f"a: !!python/object/apply:os.system ['touch {marker}']")
    with pytest.raises(UserError, match="asks for Python objects"):
        mmengine.load(path)
    assert not marker.exists()


def test_yaml_that_unfolds_without_measure_is_refused(tmp_path):
    """Each line names the one before twice."""
    lines = ["x0: &x0 [lol]", *(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 27))]
    (tmp_path / "a.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a YAML file .*would unfold to more than 1000000 items"):
        mmengine.load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("x: &x [*x]")
    with pytest.raises(UserError, match=r"a YAML file .*contains itself"):
        mmengine.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "text", [f"a: {'9' * 5000}", "a: 2026-99-99", "[" * 5000], ids=["number", "date", "depth"]
)
def test_yaml_that_cannot_be_read_is_one_message(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match="a YAML file"):
        mmengine.load(tmp_path / "a.yaml")


def test_yaml_of_configs_comes_back(tmp_path):
    content = {"scale": (1333, 800), "mean": [1.5, 2], "nested": {"on": True, "pairs": [(1, (2,))]}}
    mmengine.dump(content, tmp_path / "a.yml")
    assert mmengine.load(tmp_path / "a.yml") == content
