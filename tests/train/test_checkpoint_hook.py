"""At any moment of a training there are two checkpoints to go back to."""

import errno
import os
from pathlib import Path

import pytest
import torch
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from toy_training import make_config

from flatten_det.compat.patches import atomic_local_files
from flatten_det.files.checkpoints import load_as_data
from flatten_det.train.checkpoints import DurableCheckpointHook
from flatten_det.train.resume import resume_from
from flatten_det.train.run import use_our_components


def train(
    folder: Path, resume: Path | None = None, work_dir: str = "run", **checkpoint_options
) -> Runner:
    changes = {f"default_hooks.checkpoint.{key}": v for key, v in checkpoint_options.items()}
    with atomic_local_files(), use_our_components():
        cfg = make_config(folder, by_epoch=False, changes=changes)
        cfg.work_dir = str(folder / work_dir)
        if resume is not None:
            resume_from(cfg, str(resume))
        runner = Runner.from_cfg(cfg)
        runner.train()
    return runner


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run").glob("*.pth")}


@pytest.fixture
def states(tmp_path, monkeypatch) -> list[set[str]]:
    """The checkpoints there are just before and after each one gets its name."""
    states = []
    replace = os.replace

    def watched(source, target):
        states.append(checkpoints(tmp_path))
        if Path(target).name == "last_checkpoint":
            load_as_data(Path(source).read_text())  # Names a file that can be read already.
        replace(source, target)
        states.append(checkpoints(tmp_path))

    monkeypatch.setattr(os, "replace", watched)
    return states


@pytest.mark.parametrize(
    ("asked", "kept"), [(1, {14, 15}), (3, {13, 14, 15}), (-1, set(range(1, 16)))]
)
def test_two_checkpoints_are_always_there(tmp_path, states, asked, kept):
    train(tmp_path, interval=1, max_keep_ckpts=asked)
    assert checkpoints(tmp_path) == {f"iter_{number}.pth" for number in kept}
    two_written = next(index for index, state in enumerate(states) if len(state) == 2)
    assert all(len(state) >= 2 for state in states[two_written:])
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    assert last == str(tmp_path / "run" / "iter_15.pth")


def test_what_a_killed_run_could_not_remove_is_removed_when_it_goes_on(tmp_path):
    train(tmp_path, interval=1, max_keep_ckpts=2)
    surplus = tmp_path / "run" / "iter_13.pth"
    surplus.write_bytes(b"")
    train(tmp_path, tmp_path / "run" / "iter_15.pth", interval=1, max_keep_ckpts=2)
    assert checkpoints(tmp_path) == {"iter_14.pth", "iter_15.pth"}


BEST = dict(interval=5, save_best="toy/mean", rule="greater")


def test_the_best_is_replaced_only_by_a_written_one(tmp_path, states):
    # The mean output of the toy rises or falls in every validation: a best one each.
    train(tmp_path, **BEST)
    with_best = [any(name.startswith("best") for name in state) for state in states]
    assert all(with_best[with_best.index(True) :])
    assert sum(name.startswith("best") for name in checkpoints(tmp_path)) == 1


def test_the_best_of_the_run_that_another_one_began_with_stays(tmp_path):
    train(tmp_path, **BEST)
    path = tmp_path / "run" / "iter_5.pth"
    checkpoint = load_as_data(str(path))
    (best,) = (tmp_path / "run").glob("best_*")
    checkpoint["message_hub"]["runtime_info"] |= {"best_ckpt": str(best), "best_score": -1e9}
    torch.save(checkpoint, path)
    train(tmp_path, path, "other", **BEST)
    assert best.exists()
    assert len(list((tmp_path / "other").glob("best_*"))) == 1


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / "run").mkdir()
    leftover = tmp_path / "run" / f".flatten_det-{'0' * 16}.partial"
    others = tmp_path / "run" / "film.mkv.partial"
    for path in (leftover, others):
        path.write_bytes(b"half")
    train(tmp_path)
    assert not leftover.exists()
    assert others.exists()


def test_a_failed_write_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    replace = os.replace

    def failing(source, target):
        if Path(target).name == "iter_4.pth":
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="Input/output"):
        train(tmp_path, interval=1, max_keep_ckpts=2)
    assert checkpoints(tmp_path) == {"iter_2.pth", "iter_3.pth"}
    assert (tmp_path / "run" / "last_checkpoint").read_text().endswith("iter_3.pth")
    assert not list((tmp_path / "run").glob("*.partial"))


def test_configs_are_served_only_for_the_time_of_a_training(tmp_path):
    runner = train(tmp_path)
    assert any(isinstance(hook, DurableCheckpointHook) for hook in runner.hooks)
    assert runner.cfg.default_hooks.checkpoint.type == "CheckpointHook"
    again = Runner.from_cfg(make_config(tmp_path, by_epoch=False))
    assert any(type(hook) is CheckpointHook for hook in again.hooks)
