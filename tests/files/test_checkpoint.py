"""Checkpoints are data, and must fill the model."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from malicious_files import served
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint
from torch import nn

from flatten_det.errors import UserError
from flatten_det.files.checkpoints import (
    check_checkpoint,
    check_fit,
    checkpoints_read_once,
    load_to_check,
    take_checked,
    trusted_checkpoints,
)


def save(path, content) -> str:
    torch.save(content, path)
    return str(path)


def test_what_mmengine_saves_is_data(tmp_path):
    content = {
        "state_dict": nn.Linear(2, 2).state_dict(),
        "meta": {"iter": 3, "palette": [(1, 2, 3)]},
        "message_hub": {
            "log_scalars": {"train/loss": HistoryBuffer([1.0, 2.0], [1, 1])},
            "runtime_info": {"best": np.float64(0.5), "steps": np.arange(3), "on": np.bool_(True)},
        },
    }
    check_checkpoint(save(tmp_path / "a.pth", content))


def test_class_names_are_not_longer_than_names(tmp_path):
    """They are written beside each of the objects that are found."""
    weights = nn.Linear(2, 2).state_dict()
    for length in (1000, 1001):
        meta = {"dataset_meta": {"classes": ("cat", "x" * length)}}
        path = save(tmp_path / "a.pth", {"state_dict": weights, "meta": meta})
        if length == 1000:
            check_checkpoint(path)
    with pytest.raises(UserError, match=r"a\.pth cannot be used: its meta data is damaged"):
        check_checkpoint(path)


def test_downloads_are_looked_at_too(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "served").mkdir()
    save(tmp_path / "served" / "a.pth", nn.Linear(2, 2).state_dict())
    save(tmp_path / "served" / "b.pth", {"epoch": 3})
    with served(tmp_path / "served") as address:
        check_checkpoint(f"{address}/a.pth")
        with checkpoints_read_once():
            check_checkpoint(f"{address}/a.pth")
            monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("read again"))
            assert "weight" in load_checkpoint(nn.Linear(2, 2), f"{address}/a.pth", "cpu")
        monkeypatch.undo()
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        with pytest.raises(
            UserError, match=r"checkpoint http.*b\.pth cannot be used: .*no weights"
        ):
            check_checkpoint(f"{address}/b.pth")
        with pytest.raises(UserError, match=r"checkpoint http.*c\.pth cannot be read .*404"):
            check_checkpoint(f"{address}/c.pth")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04broken zip"])
def test_files_that_are_no_checkpoints(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth cannot be read: .*complete PyTorch checkpoint"):
        check_checkpoint(str(path))


def test_fit_names_what_is_missing_or_of_another_shape():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    weights = {f"module.{name}": weight for name, weight in model.state_dict().items()}
    del weights["module.1.num_batches_tracked"]
    check_fit(model, weights, "a.pth")
    weights["module.0.weight"] = torch.zeros(3, 4)
    del weights["module.1.running_var"]
    with pytest.raises(
        UserError, match=r"a\.pth .* 2 of 6 weights .*\(0\.weight, 1\.running_var\)"
    ):
        check_fit(model, weights, "a.pth")


def test_pipe_in_the_place_of_a_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"checkpoint .*a\.pth is a named pipe, not a file"):
        check_checkpoint(str(tmp_path / "a.pth"))


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save(
        {"state_dict": {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}}, tmp_path / "a.pth"
    )
    return tmp_path / "a.pth"


def loaded(path: Path) -> dict:
    return CheckpointLoader.load_checkpoint(str(path), "cpu", logger="silent")


def test_what_was_checked_is_loaded_once_within_the_block(saved):
    with checkpoints_read_once():
        check_checkpoint(str(saved))
        checked = load_to_check(saved)
        assert load_to_check(saved) is checked
        assert loaded(saved) is checked
        assert loaded(saved) is not checked  # The first one has been changed, perhaps.
        check_checkpoint(str(saved))
    with checkpoints_read_once():
        assert take_checked(saved) is None
    assert load_to_check(saved) is not load_to_check(saved)


def test_a_file_that_changed_after_the_check_is_read_again(saved):
    with checkpoints_read_once():
        check_checkpoint(str(saved))
        torch.save({"state_dict": {"weight": torch.ones(2, 2)}}, saved)
        assert loaded(saved)["state_dict"]["weight"].all()


def test_what_was_trusted_is_not_taken_for_data(saved):
    with checkpoints_read_once():
        with trusted_checkpoints():
            check_checkpoint(str(saved))
        assert take_checked(saved) is None
        check_checkpoint(str(saved))
        another = saved.with_name("b.pth")
        torch.save({"state_dict": {"weight": torch.ones(2, 2)}}, another)
        check_checkpoint(str(another))  # One at a time.
        assert take_checked(saved) is None
        assert take_checked(another) is not None
