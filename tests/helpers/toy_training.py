"""A training of milliseconds that uses everything a real one does: loops, hooks, checkpoints."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

from flatten_det.config import load_config
from flatten_det.files.checkpoints import load_as_data
from flatten_det.train.resume import resume_from
from flatten_det.train.run import train

SAMPLES, BATCH = 10, 2
# mmengine's singletons are named after experiment and second: two runs must not share them.
run_numbers = itertools.count()


@DATASETS.register_module()
class IndexDataset(Dataset):
    """Item i is the number i, with noise from every generator that augmentations use."""

    def __init__(self, length: int = SAMPLES) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict:
        noise = random.random() + np.random.rand() + torch.rand(()).item()
        return {"items": float(index), "noise": noise, "img_path": f"images/{index}.jpg"}


@MODELS.register_module()
class LineModel(BaseModel):
    """Fits a line through the item numbers; its weights depend on order, noise and dropout.

    Args:
        norm: with batch normalization, which needs two samples.
    """

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.3)

    def init_weights(self) -> None:
        nn.init.constant_(self.line.weight, 0.5)
        nn.init.zeros_(self.line.bias)

    def forward(self, items, noise=None, img_path=None, mode: str = "tensor"):
        inputs = torch.as_tensor(items, dtype=torch.float32)[:, None] / SAMPLES
        if mode == "loss":
            noisy = inputs + 0.1 * torch.as_tensor(noise, dtype=torch.float32)[:, None]
            outputs = self.dropout(self.norm(self.line(noisy)))
            return {"loss": ((outputs - inputs**2) ** 2).mean()}
        return [{"output": value} for value in self.norm(self.line(inputs)).flatten()]


@METRICS.register_module()
class MeanOutput(BaseMetric):
    default_prefix = "toy"

    def process(self, data_batch, data_samples) -> None:
        self.results.extend(sample["output"].item() for sample in data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {"mean": sum(results) / len(results)}


class Calling(Hook):
    """Calls a function after iterations, before anything is saved."""

    def __init__(self, after_train_iter) -> None:
        self._function = after_train_iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self._function(runner)


def make_config(folder: Path, by_epoch: bool, changes: dict | None = None) -> Config:
    """15 iterations in 3 epochs, or without epochs; validation every 5."""
    loader = {
        "batch_size": BATCH,
        "num_workers": 0,
        "dataset": {"type": "IndexDataset"},
        "sampler": {"type": "DefaultSampler" if by_epoch else "InfiniteSampler", "shuffle": True},
        "collate_fn": {"type": "default_collate"},
    }
    cfg = {
        "default_scope": "mmengine",
        "experiment_name": f"toy-{next(run_numbers)}",
        "model": {"type": "LineModel"},
        "train_dataloader": loader,
        "val_dataloader": {**loader, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        "train_cfg": {"by_epoch": True, "max_epochs": 3, "val_interval": 1}
        if by_epoch
        else {"type": "IterBasedTrainLoop", "max_iters": 15, "val_interval": 5},
        "val_cfg": {},
        "val_evaluator": {"type": "MeanOutput"},
        "optim_wrapper": {"optimizer": {"type": "Adam", "lr": 0.1}},
        "param_scheduler": [
            {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "begin": 0, "end": 7},
            {"type": "MultiStepLR", "milestones": [2] if by_epoch else [9], "by_epoch": by_epoch},
        ],
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": -1}},
        "log_level": "ERROR",
    }
    if not by_epoch:
        cfg["default_hooks"]["checkpoint"]["by_epoch"] = False
        cfg["log_processor"] = {"by_epoch": False}
    path = folder / "toy.json"
    Config(cfg).dump(path)
    return load_config(path, changes, str(folder / "run"))


def train_toy(
    folder: Path, by_epoch: bool, changes: dict, resume: Path | None = None, hooks: Sequence = ()
) -> dict[str, torch.Tensor]:
    """Train with a checkpoint of every iteration; the final state. A resumed run takes its seed over."""
    folder.mkdir(exist_ok=True)
    cfg = make_config(folder, by_epoch, changes)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=1)
    if resume is None:
        cfg.randomness = {"seed": 3}
    else:
        resume_from(cfg, str(resume))
    train(cfg, hooks=hooks)
    return final_state(folder / "run", 15)


def final_state(work_dir: Path, iterations: int) -> dict[str, torch.Tensor]:
    """Weights, their averages, the optimizer's moments and the loss scale at the end of a training."""
    checkpoint = load_as_data((work_dir / "last_checkpoint").read_text())
    assert checkpoint["meta"]["iter"] == iterations
    tensors = {**checkpoint["state_dict"], **checkpoint.get("ema_state_dict", {})}
    for number, moments in checkpoint["optimizer"]["state"].items():
        tensors.update({f"{number}.{name}": value for name, value in moments.items()})
    loss_scale = checkpoint["optimizer"].get("loss_scaler", {})
    tensors.update({f"loss_scaler.{name}": torch.tensor(v) for name, v in loss_scale.items()})
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
