"""mmengine's own loaders read checkpoints as data once flatten_det is imported."""

import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

import flatten_det  # noqa: F401  lets mmengine read checkpoints as data
from flatten_det.checkpoints import CheckpointError
from flatten_det.checkpoints.safe_loading import SAFE_GLOBALS, load_as_data


class Payload:
    """Would create the file on unpickling."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "load",
    [
        lambda path: load_checkpoint(nn.Linear(2, 2), path),
        lambda path: CheckpointLoader.load_checkpoint(path, map_location="cpu"),
    ],
    ids=["load_checkpoint", "CheckpointLoader"],
)
def test_code_is_refused_and_not_run(load, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "executed"
    torch.save({"state_dict": nn.Linear(2, 2).state_dict(), "extra": Payload(trace)}, path)
    with pytest.raises(CheckpointError, match=r"evil\.pth cannot be read: .*could run code"):
        load(str(path))
    assert not trace.exists()


def test_what_mmengine_saves_is_data(tmp_path):
    path = str(tmp_path / "iter_3.pth")
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    saved = {
        "state_dict": nn.Linear(2, 2).state_dict(),
        "message_hub": {"log_scalars": {"train/loss": history}},
        "meta": {"epoch": 1, "seed": np.int64(3), "score": np.float64(0.5)},
        "array": np.arange(4, dtype=np.float32),
    }
    torch.save(saved, path)
    loaded = CheckpointLoader.load_checkpoint(path, map_location="cpu")
    assert loaded["message_hub"]["log_scalars"]["train/loss"].mean() == 1.5
    assert loaded["meta"] == saved["meta"]
    assert np.array_equal(loaded["array"], saved["array"])


class Method:
    """Pickles to a method of a HistoryBuffer, the way that these name their own statistics."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "statistics")

    def __call__(self):
        raise AssertionError


class CallsMethod:
    def __reduce__(self):
        return Method(), (HistoryBuffer([1.0], [1]), "mean")


def test_what_is_looked_up_is_not_called(tmp_path):
    torch.save({"x": CallsMethod()}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="statistics"):
        load_as_data(tmp_path / "a.pth")


def test_nothing_but_data_is_allowed():
    """A new entry needs a thought: can it open, import or call what a file names?"""
    names = {g[1] if isinstance(g, tuple) else g.__name__ for g in SAFE_GLOBALS}
    kinds = {"Float32DType", "Float64DType", "Int32DType", "Int64DType", "UInt32DType", "BoolDType"}
    arrays = {"ndarray", "dtype", "_reconstruct", "scalar"}
    assert names == {"HistoryBuffer", "builtins.getattr"} | arrays | kinds
    # They are allowed while a file is read, not for ever.
    assert not {HistoryBuffer, np.ndarray, np.dtype} & set(torch.serialization.get_safe_globals())


def test_compressed_checkpoints_are_not_unpacked(tmp_path):
    """PyTorch stores tensors as they are, so a small file cannot hold a large one."""
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"weight": torch.zeros(10_000_000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert bomb.stat().st_size < 100_000
    assert load_as_data(plain)["weight"].numel() == 10_000_000
    with pytest.raises(
        CheckpointError, match=r"bomb\.pth cannot be read: it would unpack to 40 MB"
    ):
        load_as_data(bomb)


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    weights = nn.Linear(2, 2).state_dict()
    save_file(weights, tmp_path / "a.safetensors")
    model = nn.Linear(2, 2)
    load_checkpoint(model, str(tmp_path / "a.safetensors"), strict=True)
    assert torch.equal(model.weight, weights["weight"])
