"""Runs side by side, whose trainings are played: order, interruptions, errors, processes that die."""

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from flatten_det.errors import UserError
from flatten_det.files.atomic import write_atomically
from flatten_det.lab.ablation import jobs
from flatten_det.lab.ablation.grid import Run
from flatten_det.lab.ablation.jobs import PROGRESS, RunInHand, finish_all
from flatten_det.lab.ablation.run import TO_CONTINUE, Finished
from flatten_det.train.stop import InterruptHook, TrainingInterrupted, TrainingPreempted


def _play(run: Run, advance) -> Finished:
    """What the variant's name says, in place of a training."""
    write_atomically(run.folder / "pid", str(os.getpid()).encode())
    if run.variant == "building":
        time.sleep(60)
    hook = InterruptHook()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hook._on_signal)
    advance(run, 0, 2)
    if run.variant in ("killed", "mistaken", "broken", "told", "quick mate"):
        while not (run.folder.parent / "long0" / "known").exists():
            time.sleep(0.05)
    if run.variant == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if run.variant == "mistaken":
        raise UserError("a mistake")
    if run.variant == "broken":
        raise ZeroDivisionError("a bug")
    if run.variant == "told":
        os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + (0 if run.variant.startswith("quick") else 60)
    steps = 0
    # What is slow ends when the test says that the others are done.
    while time.monotonic() < end and not (run.folder.parent / "done").exists():
        time.sleep(0.01)
        steps += 1
        advance(run, 1, 2)
        if hook._signal and run.variant != "stubborn":
            (run.folder / "saved").touch()
            kind = TrainingPreempted if hook._signal == signal.SIGTERM else TrainingInterrupted
            raise kind(f"{run.name}: saved{TO_CONTINUE}")
    advance(run, 2, 2)
    validation = dict(iteration=2, metrics={})
    return Finished(run.variant, run.seed, [validation], 2, torch.get_num_threads(), steps)


@pytest.fixture
def grid(monkeypatch, tmp_path):
    """Makes the runs of these variants, each with a seed that is its number.

    Their processes are forks, which have `_play` and need not import anything.
    """
    monkeypatch.setattr(jobs, "CONTEXT", get_context("fork"))
    monkeypatch.setattr(jobs, "finish", _play)
    return lambda *variants: [
        Run(variant, seed, tmp_path / f"{variant}{seed}", Config({}))
        for seed, variant in enumerate(variants)
    ]


def _note(run: Run, done: int, total: int) -> None:
    """An ``advance``: it is known to this process that the run trains."""
    (run.folder / "known").touch()


def _is_gone(run: Run) -> bool:
    """Whether the run's process has ended, even if nobody has asked for its exit code."""
    stat = Path("/proc", (run.folder / "pid").read_text(), "stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] in "ZX"


def _saved(runs: list[Run]) -> list[bool]:
    return [(run.folder / "saved").exists() for run in runs]


class Press:
    """An ``advance`` that sends a signal to its own process as soon as some runs train."""

    def __init__(self, number: int, trainings: int) -> None:
        self.pressed = False
        self._number, self._trainings, self._names = number, trainings, set()

    def __call__(self, run: Run, done: int, total: int) -> None:
        self._names.add(run.name)
        if len(self._names) >= self._trainings and not self.pressed:
            self.pressed = True
            os.kill(os.getpid(), self._number)


@pytest.fixture
def five_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("five_threads")
def test_outcomes_are_in_the_order_of_the_grid(grid):
    runs = grid("slow", "quick", "quick")
    progress, seen = {}, []

    def each(outcomes: list[Finished]) -> None:
        seen.append([outcome.seed for outcome in outcomes])
        if len(outcomes) == 2:
            (runs[0].folder.parent / "done").touch()

    def advance(run: Run, done: int, total: int) -> None:
        progress.setdefault(run.name, []).append((done, total))

    outcomes = finish_all(runs, advance, each, jobs=2)
    assert seen == [[1], [1, 2], [0, 1, 2]]
    assert [outcome.seed for outcome in outcomes] == [0, 1, 2]
    # Its own threads are what a played training has for parameters.
    assert [outcome.parameters for outcome in outcomes] == [2, 2, 2]
    assert {told[-1] for told in progress.values()} == {(2, 2)}
    assert len(progress) == 3
    # Many iterations are told by a few reports.
    assert len(progress["slow, seed 0"]) < outcomes[0].seconds / 2
    assert len({(run.folder / "pid").read_text() for run in runs} | {str(os.getpid())}) == 4
    assert all(map(_is_gone, runs))
    assert not [file for run in runs for file in run.folder.glob(jobs.PROGRESS)]


@pytest.mark.usefixtures("no_nohup")
@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (signal.SIGINT, TrainingInterrupted),
        (signal.SIGTERM, TrainingPreempted),
        (signal.SIGHUP, TrainingPreempted),
    ],
)
def test_a_signal_to_this_process_stops_all(grid, number, kind, capfd):
    runs = grid("long", "long", "quick")
    previous = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted) as stopped:
        finish_all(runs, Press(number, 2), jobs=2)
    assert type(stopped.value) is kind
    assert sorted(str(stopped.value).removesuffix(TO_CONTINUE).split("\n")) == [
        "long, seed 0: saved",
        "long, seed 1: saved",
    ]
    assert str(stopped.value).endswith(TO_CONTINUE)
    assert _saved(runs[:2]) == [True, True]
    assert not runs[2].folder.exists()
    assert all(map(_is_gone, runs[:2]))
    # The processes leave the terminal to this one.
    assert capfd.readouterr().err.count("saving") == 1
    assert signal.getsignal(number) is previous


def test_a_signal_to_a_process_alone_stops_all(grid):
    runs = grid("long", "told")
    with pytest.raises(TrainingPreempted, match="told, seed 1: saved"):
        finish_all(runs, _note, jobs=2)
    assert _saved(runs) == [True, True]


def test_who_does_not_train_yet_is_not_waited_for(grid):
    runs = grid("long", "building")
    press = Press(signal.SIGINT, 1)

    def advance(run: Run, done: int, total: int) -> None:
        if (runs[1].folder / "pid").exists():
            press(run, done, total)

    start = time.monotonic()
    with pytest.raises(TrainingInterrupted, match="long, seed 0: saved"):
        finish_all(runs, advance, jobs=2)
    assert time.monotonic() - start < 20
    assert _is_gone(runs[1])


def test_ctrl_c_again_ends_at_once(grid, monkeypatch):
    monkeypatch.setattr(InterruptHook, "same_keypress_s", 0.0)
    runs = grid("stubborn", "stubborn")
    start = time.monotonic()
    press, again = Press(signal.SIGINT, 2), Timer(1, os.kill, (os.getpid(), signal.SIGINT))

    def advance(run: Run, done: int, total: int) -> None:
        press(run, done, total)
        if press.pressed and not again.is_alive():
            again.start()

    with pytest.raises(TrainingInterrupted, match="interrupted at once, without new checkpoints"):
        finish_all(runs, advance, jobs=2)
    assert time.monotonic() - start < 20
    assert all(map(_is_gone, runs))


@pytest.mark.parametrize(
    ("variant", "kind", "message", "cause"),
    [
        ("mistaken", UserError, "^a mistake$", "UserError: a mistake"),
        ("broken", RuntimeError, "^broken, seed 1: ZeroDivisionError: a bug$", "in _play\n"),
        ("killed", UserError, "^killed, seed 1: its process was killed by SIGKILL", None),
    ],
)
def test_what_ends_one_run_stops_the_others(grid, variant, kind, message, cause):
    runs = grid("long", variant, "quick")
    with pytest.raises(kind, match=message) as failed:
        finish_all(runs, _note, jobs=2)
    assert type(failed.value) is kind
    assert "\n" not in str(failed.value)
    assert str(failed.value.__cause__).count("Traceback") == (cause is not None)
    assert cause is None or cause in str(failed.value.__cause__)
    assert _saved(runs[:1]) == [True]
    assert not runs[2].folder.exists()
    assert all(map(_is_gone, runs[:2]))


def test_an_error_of_this_process_stops_all(grid):
    runs = grid("long", "quick mate")

    def fail(outcomes: list[Finished]) -> None:
        raise UserError("--metric AP: runs have the metrics mIoU")

    with pytest.raises(UserError, match="--metric AP"):
        finish_all(runs, _note, fail, jobs=2)
    assert _saved(runs[:1]) == [True]
    assert _is_gone(runs[0])


def test_kill_9_of_this_process_leaves_none_behind(grid):
    runs = grid("long", "long")
    parent = get_context("fork").Process(
        target=finish_all, args=(runs, Press(signal.SIGKILL, 2)), kwargs={"jobs": 2}
    )
    parent.start()
    parent.join(timeout=60)
    assert parent.exitcode == -signal.SIGKILL
    end = time.monotonic() + 20
    while not all(map(_is_gone, runs)):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert _saved(runs) == [True, True]


def test_a_run_that_cannot_be_told_to_stop_is_ended(tmp_path, full_disk):
    """Its training fails of the full disk, too."""
    ended = []
    job = SimpleNamespace(done=lambda: False, cancel=lambda: ended.append(True))
    run = RunInHand(Run("long", 0, tmp_path / "run", None), lambda run: job)
    (tmp_path / "run" / PROGRESS).write_text("[1, 2]")
    run.look(lambda run, done, total: None)
    full_disk(tmp_path)
    assert not run.stop(signal.SIGTERM)
    assert ended == [True]
