"""Weights, gradients and optimizer state that two processes share: ``--strategy fsdp``, on CPUs."""

import copy
import json
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from forked_ranks import Command, Forker, wait_for
from rank_hooks import journal, write_toy
from torch.distributed.fsdp import FSDPModule
from toy_training import final_state, make_config

from flatten_det.backbones import FLattenPVT, FLattenSwin
from flatten_det.config import find_config, load_config
from flatten_det.errors import UserError
from flatten_det.files.checkpoints import load_as_data
from flatten_det.train.run import train
from flatten_det.train.sharding import ShardedRunner, shard


class _Model(torch.nn.Module):
    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, *args: object) -> tuple[torch.Tensor, ...]:
        return self.backbone(*args)


TINY = {
    FLattenPVT: dict(
        arch=dict(embed_dims=(8, 16, 16, 16), num_heads=(1, 1, 1, 1), depths=(1, 1, 1, 1))
    ),
    FLattenSwin: dict(arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))),
}


@pytest.mark.parametrize(
    ("family", "mask_padding", "unit"),
    [
        (FLattenPVT, True, "TransformerBlock"),
        (FLattenSwin, True, "FLattenSwin"),
        (FLattenSwin, False, "TransformerBlock"),
    ],
)
def test_a_unit_is_computed_once_for_images_of_any_sizes(lone_process, family, mask_padding, unit):
    """Else processes would wait for each other's parts, with batches of one and of two sizes."""
    plain = family(**TINY[family], mask_padding=mask_padding).eval()
    model = _Model(copy.deepcopy(plain))
    shard(model)
    units = [m for m in model.backbone.modules() if isinstance(m, FSDPModule)]
    assert {type(m).__name__ for m in units} == {f"FSDP{unit}"}
    counts = dict.fromkeys(units, 0)
    for module in units:
        module.register_forward_hook(
            lambda module, *_: counts.__setitem__(module, counts[module] + 1)
        )
    images, sizes = torch.randn(2, 3, 64, 64), ((64, 64), (48, 64)) if mask_padding else None
    torch.testing.assert_close(model(images, sizes), plain(images, sizes), rtol=1e-4, atol=1e-5)
    assert set(counts.values()) == {1}


def test_one_process_has_nothing_to_share(tmp_path):
    with pytest.raises(UserError, match=r"--strategy fsdp .* add --processes N"):
        train(make_config(tmp_path, True), strategy="fsdp")


def test_compiled_blocks_are_refused(lone_process, tmp_path, monkeypatch):
    monkeypatch.setattr(ShardedRunner, "distributed", True)
    config = load_config(find_config(CONFIGS["detector"][0]), {"model.backbone.compile": True})
    config.work_dir = str(tmp_path)
    with pytest.raises(UserError, match=r"model\.backbone\.compile: leave one of them out"):
        ShardedRunner.from_cfg(config)


def run(
    forker: Forker, folder: Path, config: Path, *options: object, strategy: str = "fsdp"
) -> Command:
    """Train in two processes; the work dir is ``run`` in the folder."""
    options = ("--strategy", strategy, "--work-dir", folder / "run", *options)
    return forker.run(folder, "train", config, "--processes", 2, *options)


# The first process has one batch more in the validation, and the detector's have images of several sizes.
SHORT = """
_base_ = [{base!r}]
model = dict(backbone=dict(with_cp=True))
few = dict(num_images=dict(train=8, val=5), image_size={size})
train_cfg = dict(max_iters=20, val_interval=20)
train_dataloader = dict(batch_size=2, dataset=few)
val_dataloader = dict(batch_size=2, dataset=few)
test_dataloader = val_dataloader
# Adam makes much of rounding where gradients are nearly zero.
optim_wrapper = dict(clip_grad=dict(max_norm=1.0), optimizer=dict(eps=1e-4))
default_hooks = dict(visualization=dict(draw=False))
custom_hooks = [dict(type="RankJournal")]
randomness = dict(seed=0)
"""
CONFIGS = {
    "detector": ("retinanet_flatten-pvt-nano_fpn_shapes-mixed", ((64, 64), (96, 96))),
    "segmentor": ("flatten-pvt-nano_semantic-fpn_shapes", (96, 96)),
}


def metrics(lines: list[str]) -> dict[str, float]:
    """Of the last validation, or of a test, without times."""
    return {
        n: value for n, value in json.loads(lines[-1]).items() if n[:4] == "coco" or n == "mIoU"
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_losses_are_those_of_ddp_and_one_process_tests_the_checkpoint(forker, tmp_path, kind):
    config = tmp_path / f"{kind}.py"
    name, size = CONFIGS[kind]
    config.write_text(SHORT.format(base=str(find_config(name)), size=size))
    losses = {}
    for strategy in ("ddp", "fsdp"):
        run(forker, tmp_path, config, "--work-dir", tmp_path / strategy, strategy=strategy)
        entries = journal(tmp_path / strategy)
        losses[strategy] = torch.tensor([entry["loss"] for entry in entries])
    assert losses["ddp"].shape == (20,)
    assert losses["ddp"][-1] < 0.9 * losses["ddp"][0]
    torch.testing.assert_close(losses["fsdp"], losses["ddp"], rtol=1e-3, atol=0)
    checkpoint = tmp_path / "fsdp" / "iter_20.pth"
    forker.run(tmp_path, "test", config, checkpoint, "--work-dir", tmp_path / "test")
    (tested,) = tmp_path.glob("test/*/*.json")
    (scalars,) = tmp_path.glob("fsdp/*/vis_data/scalars.json")
    measured = metrics([tested.read_text()])
    assert max(measured.values()) > 0
    assert measured == metrics(scalars.read_text().splitlines())


def types(part: object) -> object:
    """Of what a checkpoint holds, with the shapes of its tensors."""
    if isinstance(part, dict):
        return {key: types(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [types(value) for value in part]
    return (part.shape, part.dtype) if isinstance(part, torch.Tensor) else type(part)


CASES = {
    "averaged": (["--ema"], {"optim_wrapper.clip_grad": {"max_norm": 0.1}}),
    "accumulated fp16": (
        ["--amp", "fp16"],
        {
            "optim_wrapper.accumulative_counts": 2,
            # Which goes down and up.
            "optim_wrapper.loss_scale": {"init_scale": 2.0**40, "growth_interval": 2},
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_checkpoints_are_those_of_ddp_and_each_goes_on_with_the_others(forker, tmp_path, case):
    options, changes = CASES[case]
    states, checkpoints = {}, {}
    for strategy in ("ddp", "fsdp"):
        folder = tmp_path / strategy
        run(forker, folder, write_toy(folder, **changes), *options, strategy=strategy)
        states[strategy] = final_state(folder / "run", 9)
        checkpoints[strategy] = load_as_data(str(folder / "run" / "iter_9.pth"))
    assert checkpoints["ddp"].keys() == checkpoints["fsdp"].keys()
    for part in checkpoints["ddp"].keys() - {"meta", "message_hub"}:
        assert types(checkpoints["fsdp"][part]) == types(checkpoints["ddp"][part]), part
    torch.testing.assert_close(states["fsdp"], states["ddp"], rtol=1e-5, atol=1e-6)
    for before, strategy in (("fsdp", "fsdp"), ("ddp", "fsdp"), ("fsdp", "ddp")):
        folder = tmp_path / f"{before} to {strategy}"
        resumed = [*options, "--resume", tmp_path / before / "run" / "iter_4.pth"]
        run(forker, folder, write_toy(folder, **changes), *resumed, strategy=strategy)
        state = final_state(folder / "run", 9)
        torch.testing.assert_close(state, states["fsdp"], rtol=1e-5, atol=1e-6)
        if before == strategy:
            assert all(torch.equal(value, states["fsdp"][name]) for name, value in state.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(forker, tmp_path, strategy):
    failing = {"type": "FailingRank", "rank": 1, "iteration": 4, "how": "nan"}
    config = write_toy(tmp_path / "toy", failing)
    folder = run(forker, config.parent, config, strategy=strategy).folder / "run"
    before, after = (
        load_as_data(str(folder / f"iter_{iteration}.pth"))["state_dict"] for iteration in (4, 5)
    )
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert not torch.equal(final_state(folder, 9)["line.weight"], after["line.weight"])
    assert [entry["iter"] for entry in journal(folder) if math.isnan(entry["loss"])] == [4]


@pytest.mark.slow
def test_of_too_many_losses_that_are_not_finite_all_find_the_origin(forker, tmp_path):
    """In the first of the two batches of an update, and on one rank only."""
    failing = {"type": "FailingRank", "rank": 1, "iteration": 4, "how": "nan"}
    changes = {"max_non_finite_updates": 1, "optim_wrapper.accumulative_counts": 2}
    config = write_toy(tmp_path / "toy", failing, **changes)
    command = forker.start(config.parent, "train", config, "--processes", 2, "--strategy", "fsdp")
    assert forker.wait(command) == 2
    assert "stopped at iteration 6: 1 updates in a row" in command.errors
    reports = [
        json.loads((config.parent / "run" / name).read_text())
        for name in ("non_finite.json", "non_finite_rank1.json")
    ]
    assert [report["iteration"] for report in reports] == [5, 5]
    assert reports[0]["origin"] is None
    assert reports[1]["origin"]["module"] == "data_preprocessor"


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on(forker, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(forker, whole, write_toy(whole))
    config = write_toy(stopped, {"type": "RankJournal", "pause": 0.5})
    options = ["--processes", 2, "--strategy", "fsdp"]
    command = forker.start(stopped, "train", config, *options)
    wait_for((stopped / "run" / "iter_2.pth").exists)
    os.kill(command.pid, signal.SIGTERM)
    assert forker.wait(command) == 0
    saved = load_as_data(str(stopped / "run" / "interrupted.pth"))["meta"]
    assert 2 <= saved["iter"] < 9
    run(forker, stopped, write_toy(stopped), "--resume")
    found, expected = (final_state(folder / "run", 9) for folder in (stopped, whole))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
