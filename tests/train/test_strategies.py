"""Weights, gradients and optimizer state that two processes share (``--strategy fsdp``), on a CPU."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_ranks import Forker
from rank_hooks import journal

from flatten_det.files.checkpoints import load_as_data

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart"
CONFIGS = {
    "detector": "mask-rcnn_flatten-pvt-nano_fpn_shapes.py",
    "segmentor": "flatten-pvt-nano_semantic-fpn_shapes.py",
}
FEW = {f"{s}_dataloader.dataset.num_images.{p}": 8 for s in ("train", "val", "test") for p in ("train", "val")}
SHORT = """
train_cfg.update(max_iters=20, val_interval=20)
train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
default_hooks["checkpoint"].update(interval=10)
optim_wrapper["clip_grad"] = dict(max_norm=1.0)
custom_hooks = [dict(type="RankJournal")]
randomness = dict(seed=0)
"""


@pytest.fixture(scope="module")
def forker() -> Iterator[Forker]:
    with Forker() as forker:
        yield forker


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    config = folder / f"{kind}.py"
    base = QUICKSTART / CONFIGS[kind]
    config.write_text(f"_base_ = [{str(base)!r}]\n" + "".join(SHORT.replace("train_cfg.update", "train_cfg=dict").replace("train_dataloader.update(", "train_dataloader=dict(").replace('default_hooks["checkpoint"].update(', 'default_hooks=dict(checkpoint=dict(').replace("interval=10)","interval=10))").replace('optim_wrapper["clip_grad"] = dict(max_norm=1.0)','optim_wrapper=dict(clip_grad=dict(max_norm=1.0))')))
    return config


def train(forker, folder, config, *options, strategy="fsdp"):
    few = [f"{k}={v}" for k, v in FEW.items()]
    return forker.run(folder, "train", config, "--processes", 2, "--strategy", strategy, "--work-dir", folder / "run", *options, "--cfg-options", *few)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_losses(forker, tmp_path, kind):
    config = write(tmp_path / "c", kind)
    losses = {}
    for s in ("ddp", "fsdp"):
        c = train(forker, tmp_path / s, config, strategy=s)
        print(c.output[-600:], c.errors)
        losses[s] = torch.tensor([e["loss"] for e in journal(tmp_path / s / "run")])
    print(losses, (losses["ddp"] - losses["fsdp"]).abs().max())
    a, b = (load_as_data(str(tmp_path / s / "run" / "iter_20.pth")) for s in ("ddp", "fsdp"))
    print(a.keys(), b.keys())
    print({k: (v - b["state_dict"][k]).abs().max().item() for k, v in a["state_dict"].items() if v.is_floating_point()}) 
