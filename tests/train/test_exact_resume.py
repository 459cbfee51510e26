"""Resumed from any periodic checkpoint, a training ends with the very same weights."""

import shutil

import mmengine.runner.loops
import pytest
import torch
from mmengine.registry import DATA_SAMPLERS
from rank_hooks import journal
from toy_training import make_config, train_toy

from flatten_det.train.run import train

WORKERS = {"train_dataloader.num_workers": 2}
# A loss scale that is too high at first and then doubles after every other update.
FP16 = {
    "optim_wrapper.type": "CPUAmpOptimWrapper",
    "optim_wrapper.dtype": "float16",
    "optim_wrapper.loss_scale": {"init_scale": 2.0**20, "growth_interval": 2},
    "optim_wrapper.clip_grad": {"max_norm": 0.5},
}
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


@pytest.mark.parametrize(
    ("by_epoch", "changes"),
    [
        (True, {**WORKERS, "train_dataloader.persistent_workers": True}),
        (False, WORKERS),
        (True, {**EMA, "optim_wrapper.accumulative_counts": 3}),
        (False, {**EMA, "optim_wrapper.accumulative_counts": 3}),
        (True, {"train_dataloader.batch_sampler": {"type": "PairsSampler"}}),
        (False, {"train_dataloader.sampler.type": "DefaultSampler"}),
        (True, {"optim_wrapper.type": "CPUAmpOptimWrapper"}),
        (True, FP16),
        (False, {**FP16, "optim_wrapper.accumulative_counts": 3}),
        # The sampler's seed of a resumed run would be drawn at random: the checkpoint knows it.
        (True, {"randomness.diff_rank_seed": True, "randomness.seed": 3}),
    ],
    ids=str,
)
def test_any_checkpoint_leads_to_the_same_weights(tmp_path, by_epoch, changes, monkeypatch):
    # mmengine waits two seconds wherever a finite sampler begins anew.
    monkeypatch.setattr(mmengine.runner.loops.time, "sleep", lambda seconds: None)
    changes = {**changes, "default_hooks.logger": {"type": "LoggerHook", "interval": 1}}
    expected = train_toy(tmp_path / "whole", by_epoch, changes)
    for iteration in (5, 8):
        start = tmp_path / "whole" / "run" / f"iter_{iteration}.pth"
        resumed = train_toy(tmp_path / f"from_{iteration}", by_epoch, changes, start)
        torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
        shutil.rmtree(tmp_path / f"from_{iteration}")


def test_augmentations_differ_between_epochs_samples_and_seeds(tmp_path):
    """What an exact resume must not be bought with."""
    noises = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        cfg = make_config(folder, by_epoch=True, changes=WORKERS)
        cfg.randomness, cfg.custom_hooks = {"seed": seed}, [{"type": "RankJournal"}]
        train(cfg)
        noises += [noise for entry in journal(folder / "run") for noise in entry["noise"]]
    assert len(set(noises)) == len(noises) == 2 * 30
