"""``kill -9`` at random moments, in the middle of a checkpoint's writing too, costs nothing."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy_training import final_state, make_config

from flatten_det.train.resume import resume_from
from flatten_det.train.run import train

KILLS = 20
EPOCHS, ITERATIONS = 24, 120


def _run(folder: Path, by_epoch: bool, writing=None, pause: float = 0) -> None:
    """A training as the tool does it, with ``--resume`` where there is something to resume."""
    changes = {
        "custom_hooks": [{"type": "EMAHook", "momentum": 0.3}],
        "optim_wrapper.accumulative_counts": 2,
    }
    if by_epoch:
        changes["train_cfg.max_epochs"] = EPOCHS
    else:
        changes |= {"train_cfg.max_iters": ITERATIONS, "train_dataloader.num_workers": 1}
    cfg = make_config(folder, by_epoch, changes)
    cfg.default_hooks.checkpoint.update(
        by_epoch=False, interval=1, max_keep_ckpts=1, save_best="toy/mean", rule="greater"
    )
    cfg.randomness = {"seed": 3}
    if writing is not None:
        flush = os.fsync

        def flush_slowly(descriptor: int) -> None:
            writing.set()
            time.sleep(pause)
            flush(descriptor)

        os.fsync = flush_slowly  # Only then a file gets its name.
    if list(folder.glob("run/*.pth")):
        resume_from(cfg, "auto")
    train(cfg)


def _start(started: list, folder: Path, by_epoch: bool, *writing) -> multiprocessing.Process:
    """In a fork, as importing the frameworks anew takes seconds; of a process without threads."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("fork")
    # Not a daemon: those may not have data workers.
    process = context.Process(target=_run, args=(folder, by_epoch, *writing))
    process.start()
    started.append(process)
    return process


def _kill_and_resume(tmp_path: Path, by_epoch: bool, started: list) -> None:
    """One training that nobody kills, in ``whole``; one that is killed all the time, in ``killed``."""
    reference = _start(started, tmp_path / "whole", by_epoch)
    folder, rng = tmp_path / "killed", random.Random(0)
    within_writing = 0
    for number in range(KILLS):
        writing = multiprocessing.get_context("fork").Event()
        # Chance alone meets the writing too seldom: every third is killed while it waits in there.
        process = _start(started, folder, by_epoch, writing, 0.03 if number % 3 else 60)
        assert writing.wait(timeout=60), process.exitcode
        time.sleep(rng.uniform(0, 0.3) if number % 3 else 0)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        within_writing += any((folder / "run").rglob("*.partial"))
    assert within_writing >= KILLS // 3
    for process in (_start(started, folder, by_epoch), reference):
        process.join(timeout=120)
        assert process.exitcode == 0


@pytest.mark.slow
@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
def test_the_weights_are_those_of_a_run_that_nobody_killed(tmp_path, by_epoch):
    # This process has threads of earlier tests, which a fork would wait for in vain.
    path = os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *sys.path])
    subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(int(by_epoch))],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        timeout=280,
    )
    folder = tmp_path / "killed"
    assert not list((folder / "run").glob("*.partial"))
    assert len(list((folder / "run").glob("iter_*.pth"))) == 2
    killed, whole = (final_state(path / "run", ITERATIONS) for path in (folder, tmp_path / "whole"))
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)


if __name__ == "__main__":
    trainings: list[multiprocessing.Process] = []
    try:
        _kill_and_resume(Path(sys.argv[1]), bool(int(sys.argv[2])), trainings)
    finally:
        for training in trainings:
            training.kill()
