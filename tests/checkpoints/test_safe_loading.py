"""mmengine's own loaders read checkpoints as data once flatten_det is imported."""

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

import flatten_det  # noqa: F401  lets mmengine read checkpoints as data
from flatten_det.checkpoints import CheckpointError


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
