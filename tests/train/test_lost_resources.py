"""A full disk or a killed data worker end a training with one message and an intact checkpoint."""

import contextlib
import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from tool_modules import one_line_error
from toy_training import IndexDataset, make_config

from flatten_det.cli import run_tool
from flatten_det.train.checkpoints import newest_valid_checkpoint
from flatten_det.train.run import train
from flatten_det.train.stop import TrainingStopped, explain_stop


@contextlib.contextmanager
def training_in(work_dir: Path) -> Iterator[None]:
    """A training that goes well until the block raises."""
    with explain_stop(Config({"work_dir": str(work_dir)})) as stage:
        stage.has_begun = True
        yield


@DATASETS.register_module()
class DeadlyDataset(IndexDataset):
    """Its worker is killed when it reads the sixth item, as by the kernel when memory is short."""

    def __getitem__(self, index: int) -> dict:
        self.count = getattr(self, "count", 0) + 1
        if self.count == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_killed_worker(tmp_path, capsys):
    changes = {
        "train_dataloader.num_workers": 1,
        "train_dataloader.prefetch_factor": 1,
        "train_dataloader.dataset.type": "DeadlyDataset",
        "default_hooks.checkpoint.interval": 1,
    }
    cfg = make_config(tmp_path, by_epoch=False, changes=changes)
    assert run_tool(lambda: train(cfg)) == 2
    error = one_line_error(capsys)
    # PyTorch notices it in one of two ways.
    died = (
        r"a data worker died \((killed by signal: Killed|exited)\), most likely as memory ran out"
    )
    assert re.search(died, error)
    assert "GB of /dev/shm" in error
    assert "train_dataloader.num_workers=1" in error
    last = newest_valid_checkpoint(tmp_path / "run")
    assert error.endswith(
        f"The last checkpoint is {last}: to go on from there, repeat the command with --resume"
    )


def test_a_full_disk(tmp_path, capsys, full_disk, monkeypatch):
    """There is no room for the third checkpoint."""
    replace = os.replace

    def full_after_the_second(partial, path):
        replace(partial, path)
        if path.name == "last_checkpoint" and path.read_text().endswith("iter_2.pth"):
            full_disk(tmp_path)

    monkeypatch.setattr(os, "replace", full_after_the_second)
    changes = {"default_hooks.checkpoint.interval": 1, "default_hooks.checkpoint.max_keep_ckpts": 1}
    cfg = make_config(tmp_path, by_epoch=False, changes=changes)
    assert run_tool(lambda: train(cfg)) == 2
    error = one_line_error(capsys)
    folder = tmp_path / "run"
    assert f"cannot write {folder / 'iter_3.pth'}: the disk is full: it takes " in error
    assert f"The last checkpoint is {folder / 'iter_2.pth'}: to go on" in error
    assert {path.name for path in folder.glob("iter_*")} == {"iter_1.pth", "iter_2.pth"}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (errno.ENOSPC, r"full: no room for a\.json: .*"),
        (errno.EROFS, r"a\.json: Read-only file .*"),
    ],
)
def test_a_log_without_room(tmp_path, code, told):
    expected = pytest.raises(TrainingStopped, match=rf"{told} No checkpoint was")
    with expected, training_in(tmp_path):
        raise OSError(code, os.strerror(code), "a.json")


def test_a_last_checkpoint_that_is_broken_is_not_promised(tmp_path, capsys):
    (tmp_path / "a.pth").write_bytes(b"")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "a.pth"))
    told = r"\. None of the 1 checkpoints in work dir .* can be resumed: leave out --resume"
    with pytest.raises(TrainingStopped, match=told), training_in(tmp_path):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    assert f"skipped checkpoint {tmp_path / 'a.pth'}: it is incomplete" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more"),
        RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out(tmp_path, error):
    told = r"^memory ran out \(.*\): use smaller .*with_cp=True\. No checkpoint was saved yet$"
    with pytest.raises(TrainingStopped, match=told), training_in(tmp_path):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "I/O"), ValueError()])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)) as caught, training_in(tmp_path):
        raise error
    assert caught.value is error


def test_errors_that_are_each_others_cause_pass(tmp_path):
    first, second = ValueError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    with pytest.raises(ValueError, match=r"^$"), training_in(tmp_path):
        raise first


def test_non_finite_losses(tmp_path):
    changes = {"optim_wrapper.optimizer.lr": 1e25, "max_non_finite_updates": 2}
    cfg = make_config(tmp_path, by_epoch=False, changes=changes)
    cfg.param_scheduler = []
    with pytest.raises(TrainingStopped, match=r"2 updates in a row had .* No checkpoint was saved"):
        train(cfg)
