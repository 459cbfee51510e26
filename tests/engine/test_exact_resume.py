"""Resumed from any periodic checkpoint, a training ends with the very same weights."""

import shutil
from pathlib import Path

import mmengine.runner.loops
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from toy_training import make_config

from flatten_det.checkpoints.safe_loading import load_as_data
from flatten_det.engine.config import resume_from
from flatten_det.engine.train import train

WORKERS = {"train_dataloader.num_workers": 2}
EMA = {"custom_hooks": [{"type": "EMAHook", "momentum": 0.3}]}


@DATA_SAMPLERS.register_module()
class PairsSampler:
    """A batch sampler of the user's own, as MMDetection's AspectRatioBatchSampler is one."""

    def __init__(self, sampler, batch_size: int) -> None:
        self.sampler = sampler

    def __iter__(self):
        indices = list(self.sampler)
        yield from zip(indices[::2], indices[1::2], strict=True)

    def __len__(self) -> int:
        return len(self.sampler) // 2


@HOOKS.register_module()
class NoiseJournal(Hook):
    """Notes the augmentation of every sample."""

    noises: list[float]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.noises.extend(data_batch["noise"].tolist())


def final_state(work_dir: Path) -> dict[str, torch.Tensor]:
    """Weights, their averages, and the optimizer's moments."""
    checkpoint = load_as_data((work_dir / "last_checkpoint").read_text())
    assert checkpoint["meta"]["iter"] == 15
    tensors = {**checkpoint["state_dict"], **checkpoint.get("ema_state_dict", {})}
    for number, moments in checkpoint["optimizer"]["state"].items():
        tensors.update({f"{number}.{name}": value for name, value in moments.items()})
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def run(folder: Path, by_epoch: bool, changes: dict, resume: Path | None = None) -> dict:
    folder.mkdir(exist_ok=True)
    cfg = make_config(folder, by_epoch, changes)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    cfg.default_hooks.logger = {"type": "LoggerHook", "interval": 1}
    if resume is None:
        cfg.randomness = {"seed": 3}
    else:
        resume_from(cfg, str(resume))
    train(cfg)
    return final_state(folder / "run")


@pytest.mark.parametrize("by_epoch", [True, False], ids=["epochs", "iterations"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        WORKERS,
        {**WORKERS, "train_dataloader.persistent_workers": True},
        EMA,
        {"optim_wrapper.accumulative_counts": 3},
        {"optim_wrapper.type": "CPUAmpOptimWrapper"},
        {"train_dataloader.batch_sampler": {"type": "PairsSampler"}},
        {"train_dataloader.sampler.type": "DefaultSampler"},
    ],
    ids=["plain", "workers", "persistent", "EMA", "accumulation", "bf16", "batches", "finite"],
)
def test_any_checkpoint_leads_to_the_same_weights(tmp_path, by_epoch, changes, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    # mmengine waits two seconds wherever a finite sampler begins anew.
    monkeypatch.setattr(mmengine.runner.loops.time, "sleep", lambda seconds: None)
    if not by_epoch and "train_dataloader.batch_sampler" in changes:
        changes = {**changes, "train_dataloader.sampler.type": "DefaultSampler"}
    expected = run(tmp_path / "whole", by_epoch, changes)
    for iteration in (1, 5, 8):
        start = tmp_path / "whole" / "run" / f"iter_{iteration}.pth"
        resumed = run(tmp_path / f"from_{iteration}", by_epoch, changes, start)
        assert resumed.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(resumed[name], value), (iteration, name)
        shutil.rmtree(tmp_path / f"from_{iteration}")


def test_augmentations_differ_between_epochs_samples_and_seeds(tmp_path):
    """What an exact resume must not be bought with."""
    noises = {}
    for seed in (1, 2):
        NoiseJournal.noises = noises[seed] = []
        cfg = make_config(tmp_path, by_epoch=True, changes=WORKERS)
        cfg.randomness = {"seed": seed}
        cfg.custom_hooks = [{"type": "NoiseJournal"}]
        train(cfg)
    for seed in (1, 2):
        assert len(set(noises[seed])) == 30
    assert not set(noises[1]) & set(noises[2])


def test_the_order_survives_ranks_with_seeds_of_their_own(tmp_path):
    """With diff_rank_seed the sampler's seed is drawn at random: the checkpoint knows it."""
    changes = {"randomness.diff_rank_seed": True, "randomness.seed": 3}
    expected = run(tmp_path / "whole", True, changes)
    resumed = run(tmp_path / "part", True, changes, tmp_path / "whole" / "run" / "iter_7.pth")
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())
