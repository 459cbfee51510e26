"""One training at a time in a work dir, whose lock ends with its process."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from forked_ranks import in_ranks
from mmengine.config import Config
from toy_training import make_config

from flatten_det.cli import run_tool
from flatten_det.errors import UserError
from flatten_det.lab.ablation.grid import Run
from flatten_det.lab.ablation.run import RECORD, finish
from flatten_det.train.run import LOCK_NAME, locked_work_dir, train

FORK = multiprocessing.get_context("fork")


def _hold(folder: Path, holds) -> None:
    """As a training does it that has a data worker."""
    with locked_work_dir(folder):
        FORK.Process(target=time.sleep, args=(20,), daemon=True).start()
        holds.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path) -> Iterator[Callable[[], multiprocessing.Process]]:
    """Starts a process that trains in ``run``."""
    started = []

    def start() -> multiprocessing.Process:
        holds = FORK.Event()
        started.append(FORK.Process(target=_hold, args=(tmp_path / "run", holds)))
        started[-1].start()
        assert holds.wait(20)
        return started[-1]

    yield start
    for process in started:
        process.kill()


def test_of_two_trainings_one_trains_and_the_other_ends_with_one_line(tmp_path, other, capsys):
    holder = other()
    cfg = make_config(tmp_path, by_epoch=False)
    there = sorted(os.listdir(tmp_path / "run"))
    assert run_tool(lambda: train(cfg)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    who = rf"process {holder.pid} on {re.escape(socket.gethostname())} since \d{{4}}-\d\d-\d\d "
    assert re.fullmatch(
        rf"error: work dir {tmp_path}/run is in use by another training \({who}.*\): wait for its end, or "
        "give another folder",
        line,
    )
    assert sorted(os.listdir(tmp_path / "run")) == there

    # As `kill -9` does it, which leaves its data worker for a while.
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert run_tool(lambda: train(cfg)) == 0
    assert not (tmp_path / "run" / LOCK_NAME).exists()


def test_the_folder_is_free_after_a_training_and_its_own_within(tmp_path, other):
    with locked_work_dir(tmp_path / "run"), locked_work_dir(tmp_path / "run" / ".." / "run"):
        assert (tmp_path / "run" / LOCK_NAME).read_text().startswith(f"process {os.getpid()} on ")
    other()
    with pytest.raises(UserError, match="is in use by another"), locked_work_dir(tmp_path / "run"):
        pass


@pytest.mark.parametrize("failing", ["lock", "open"])
def test_where_there_are_no_locks_a_warning_says_so(tmp_path, capsys, monkeypatch, failing):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if failing == "lock":
        monkeypatch.setattr(fcntl, "flock", fail)
    else:
        (tmp_path / "run" / LOCK_NAME).mkdir(parents=True)
    with locked_work_dir(tmp_path / "run"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    reason = {"lock": "No locks available", "open": "Is a directory"}[failing]
    assert line.startswith(f"warning: work dir {tmp_path}/run cannot be locked ({reason})")


def test_an_ablation_leaves_the_record_of_a_run_under_way_alone(tmp_path, other):
    """It is written before and after the training, which is kept out."""
    run = Run("p1-k0", 0, tmp_path / "run", Config({"work_dir": str(tmp_path / "run")}))
    other()
    with pytest.raises(UserError, match="is in use by another training"):
        finish(run)
    assert not (run.folder / RECORD).exists()


def test_ranks_share_the_lock_and_its_refusal(tmp_path, other):
    def work(rank: int) -> dict[str, str]:
        told = {}
        for name in ("run", "free"):
            try:
                with locked_work_dir(tmp_path / name):
                    torch.distributed.barrier()
                    told[name] = ""
            except UserError as error:
                told[name] = str(error).split("(")[0]
        return told

    other()
    refusal = f"work dir {tmp_path / 'run'} is in use by another training "
    assert in_ranks(tmp_path, 2, work) == [{"run": refusal, "free": ""}] * 2
