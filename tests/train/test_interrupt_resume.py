"""A training that is interrupted anywhere and resumed equals one that never was."""

import errno
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked_ranks import in_ranks
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from toy_training import Calling, make_config

from flatten_det.cli import run_tool
from flatten_det.compat.patches import atomic_local_files
from flatten_det.errors import UserError
from flatten_det.files.checkpoints import load_as_data
from flatten_det.train.resume import ResumePositionHook, SeedIterationHook, resume_from
from flatten_det.train.run import use_our_components
from flatten_det.train.stop import (
    SIGNAL_NAMES,
    InterruptHook,
    TrainingInterrupted,
    TrainingPreempted,
)

FORK = multiprocessing.get_context("fork")


class Journal(Hook):
    """Records what the training did, and sends a signal where told, several times as batch systems do."""

    priority = "NORMAL"

    def __init__(self, entries: list, moment: tuple | None = None, number=signal.SIGINT) -> None:
        self.entries = entries
        self.moment = moment
        self.number = number

    def _press(self, moment: tuple) -> None:
        if moment == self.moment:
            for _ in range(3):
                os.kill(os.getpid(), self.number)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        lr = runner.optim_wrapper.get_lr()["lr"][0]
        self.entries.append(
            ("train", runner.epoch, runner.iter, tuple(data_batch["items"].tolist()), lr)
        )
        self._press(("train", runner.iter))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._press(("val", runner.iter))

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.entries.append(("val", runner.epoch, runner.iter, metrics["toy/mean"]))


def run(cfg: Config, journal: Journal) -> tuple[list, dict]:
    with InterruptHook() as interrupt, atomic_local_files(), use_our_components():
        runner = Runner.from_cfg(cfg)
        for hook in (interrupt, ResumePositionHook(), SeedIterationHook(), journal):
            runner.register_hook(hook)
        runner.train()
    return journal.entries, runner.model.state_dict()


def train_and_resume(folder: Path, by_epoch: bool, moments: list, changes: dict) -> tuple:
    """Interrupted at each of the moments."""
    entries: list = []
    cfg = make_config(folder, by_epoch, changes)
    for moment in moments:
        with pytest.raises(TrainingInterrupted, match=r"interrupted\.pth.*--resume"):
            run(cfg, Journal(entries, moment))
        cfg = make_config(folder, by_epoch, changes)
        resume_from(cfg, "auto")
    return run(cfg, Journal(entries))


NOTHING: dict = {}
WORKERS = {"train_dataloader.num_workers": 1, "train_dataloader.persistent_workers": True}


@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
@pytest.mark.parametrize(
    ("moments", "changes"),
    [
        ([("train", 0)], NOTHING),  # within the first epoch
        ([("train", 4)], NOTHING),  # its last batch: the epoch and its validation are still to end
        ([("train", 6)], NOTHING),
        ([("val", 5)], NOTHING),  # within a validation
        ([("train", 14)], NOTHING),  # the last iteration of all
        ([("train", 1), ("train", 2), ("val", 5), ("train", 7), ("train", 12)], NOTHING),
        ([("train", 6), ("val", 10)], WORKERS),
        ([("train", 6), ("val", 10)], {"optim_wrapper.accumulative_counts": 3}),
        ([("train", 6), ("val", 10)], {"custom_hooks": [{"type": "EMAHook", "momentum": 0.3}]}),
    ],
    ids=str,
)
def test_resumed_run_equals_uninterrupted_run(tmp_path, by_epoch, moments, changes):
    """The config sets no seed, as most do not: the resumed run takes over the first one's."""
    entries, weights = train_and_resume(tmp_path, by_epoch, moments, changes)
    (tmp_path / "reference").mkdir()
    cfg = make_config(tmp_path / "reference", by_epoch, changes)
    saved = load_as_data(str(tmp_path / "run" / "interrupted.pth"))
    cfg.randomness = {"seed": saved["meta"]["seed"]}
    expected_entries, expected = run(cfg, Journal([]))
    assert entries == expected_entries
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)


def press_ctrl_c_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


def test_second_ctrl_c_quits_at_once(tmp_path, capfd):
    runner = Runner.from_cfg(make_config(tmp_path, by_epoch=True))
    with InterruptHook("do this") as hook:
        hook.same_keypress_s = 0.0
        for each in (hook, Calling(lambda runner: press_ctrl_c_twice())):
            runner.register_hook(each)
        with pytest.raises(TrainingInterrupted, match=r"at once.*; to continue, do this$"):
            runner.train()
    assert not (tmp_path / "run" / "interrupted.pth").exists()
    assert "Ctrl-C again quits at once" in capfd.readouterr().err


def test_training_gives_the_signals_back(tmp_path):
    before = [signal.getsignal(number) for number in SIGNAL_NAMES]
    run(make_config(tmp_path, by_epoch=True), Journal([]))
    assert [signal.getsignal(number) for number in SIGNAL_NAMES] == before


@pytest.mark.usefixtures("no_nohup")
@pytest.mark.parametrize(
    ("number", "name", "moment"),
    [
        (signal.SIGTERM, "terminated (SIGTERM)", ("train", 6)),
        (signal.SIGTERM, "terminated (SIGTERM)", ("val", 5)),
        (signal.SIGHUP, "its terminal was closed (SIGHUP)", ("train", 6)),
        (signal.SIGUSR1, "pre-empted (SIGUSR1)", ("train", 6)),
    ],
)
def test_all_but_ctrl_c_save_and_are_no_failure(tmp_path, capfd, number, name, moment):
    """The tool's exit code is 0."""
    cfg = make_config(tmp_path, by_epoch=True)
    assert run_tool(lambda: run(cfg, Journal([], moment, number))) == 0
    announced, stopped = capfd.readouterr().err.strip().splitlines()
    assert announced == f"{name}: saving a checkpoint after this iteration"
    path = tmp_path / "run" / "interrupted.pth"
    iteration = load_as_data(str(path))["meta"]["iter"]
    assert stopped == (
        f"{name} after iteration {iteration}, saved {path}; "
        "to continue, repeat the command with --resume"
    )


def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        entries, _ = run(
            make_config(tmp_path, by_epoch=True), Journal([], ("train", 6), signal.SIGHUP)
        )
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert len([entry for entry in entries if entry[0] == "train"]) == 15


@pytest.mark.usefixtures("no_nohup")
def test_a_terminal_that_is_gone_does_not_keep_a_training_from_saving(tmp_path, monkeypatch):
    """What is said of the signal is written to it."""

    def fail(descriptor, content):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(TrainingPreempted):
        run(make_config(tmp_path, by_epoch=True), Journal([], ("train", 6), signal.SIGHUP))
    assert (tmp_path / "run" / "interrupted.pth").exists()


def test_ctrl_c_is_told_by_the_exit_code(tmp_path):
    """What torchrun passes on, too, counts as the same keypress."""
    cfg = make_config(tmp_path, by_epoch=True)
    assert run_tool(lambda: run(cfg, Journal([], ("train", 1), signal.SIGINT))) == 130
    assert (tmp_path / "run" / "interrupted.pth").exists()


def test_resume_refuses_another_epoch_length(tmp_path):
    with pytest.raises(TrainingInterrupted):
        run(make_config(tmp_path, by_epoch=True), Journal([], ("train", 1)))
    cfg = make_config(tmp_path, True, {"train_dataloader.batch_size": 5})
    resume_from(cfg, "auto")
    with pytest.raises(UserError, match="2 of 5 batches of an epoch, which now has 2"):
        run(cfg, Journal([]))


def test_weights_of_an_interrupted_run_start_a_new_training(tmp_path):
    """``load_from`` takes the weights only: the position belongs to the other run."""
    with pytest.raises(TrainingInterrupted):
        run(make_config(tmp_path, by_epoch=True), Journal([], ("train", 1)))
    cfg = make_config(tmp_path, by_epoch=True)
    cfg.load_from = str(tmp_path / "run" / "interrupted.pth")
    entries, _ = run(cfg, Journal([]))
    assert len([entry for entry in entries if entry[0] == "train"]) == 15


@pytest.fixture
def runner(tmp_path) -> SimpleNamespace:
    """What a hook needs of one."""
    return SimpleNamespace(
        train_loop=None,
        val_loop=None,
        optim_wrapper=None,
        epoch=0,
        iter=0,
        work_dir=tmp_path,
        save_checkpoint=lambda *args, **kwargs: None,
    )


def train_on_two(runner: SimpleNamespace, *numbers: int) -> list[tuple]:
    """What stops two ranks that get these signals."""

    def work(rank: int) -> tuple | None:
        hook = InterruptHook()
        hook.before_train(runner)
        if numbers[rank]:
            os.kill(os.getpid(), numbers[rank])
        try:
            for runner.iter in range(1, 9):
                hook.before_train_iter(runner, 0)
        except TrainingInterrupted as stopped:
            return type(stopped), runner.iter, stopped.exit_code

    return in_ranks(runner.work_dir, 2, work)


def test_ranks_stop_at_the_same_iteration(runner):
    """They hear different signals, and stop for the same one, where they talk to each other."""
    stopped = train_on_two(runner, signal.SIGINT, signal.SIGTERM)
    assert stopped == [(TrainingPreempted, 5, 0)] * 2


def test_torchrun_of_a_machine_that_got_no_signal_starts_again(runner, monkeypatch):
    """With the one that takes the other's place: to end with 0 would be to be done."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    stopped = train_on_two(runner, 0, signal.SIGTERM)
    assert stopped == [(TrainingPreempted, 5, 143), (TrainingPreempted, 5, 0)]


def test_a_supervised_training_says_nothing_and_saves_even_if_ctrl_c_comes_again(runner, capfd):
    with InterruptHook() as hook:
        hook.supervised, hook.same_keypress_s = True, 0.0
        hook.before_train(runner)
        press_ctrl_c_twice()
        with pytest.raises(TrainingInterrupted, match="saved"):
            hook.before_train_iter(runner, 0)
    assert capfd.readouterr().err == ""


def test_forked_workers_ignore_the_signal(runner, capfd):
    with InterruptHook() as hook:
        hook.before_train(runner)
        worker = FORK.Process(target=press_ctrl_c_twice)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
        hook.before_train_iter(runner, 0)
    assert capfd.readouterr().err == ""
