"""What a config of the zoo says about itself."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS

from ...backbones import BACKBONES
from ...backbones.options import resolve_arch
from ...config import load_config
from ...errors import UserError
from ..training_size import training_size
from .names import DATASETS, METHODS, title_of
from .pretraining import describe_pretraining

# The arguments, beside arch, that tell backbones of one type apart.
IDENTITY = {
    "attn_types",
    "la_sr_ratios",
    "la_window_size",
    "pretrain_img_size",
    "split_size",
    "window_size",
}


@dataclass(frozen=True)
class ZooConfig:
    """One config file.

    Attributes:
        path: relative to the checkout, with forward slashes.
        backbone: short name.
        cfg: its content.
    """

    path: str
    backbone: str
    cfg: Config

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def metadata(self) -> dict[str, Any]:
        """The entry's ``Metadata``, but for what needs the model."""
        cfg = self.cfg
        dataset, repeats = _inner_dataset(cfg.train_dataloader.dataset)
        if "max_epochs" in cfg.train_cfg:
            length = {"Epochs": cfg.train_cfg.max_epochs * repeats}
        else:
            length = {"Iterations": cfg.train_cfg.max_iters}
        height, width = training_size(cfg)
        return {
            "Training Data": DATASETS[dataset.type],
            **length,
            "Batch Size": self._batch_size(),
            "Architecture": [title_of(self.backbone), METHODS[self.path.split("/")[1]]],
            "Input Size": f"{height}x{width}",
            **describe_pretraining(self.backbone, cfg.model.backbone.init_cfg.checkpoint),
        }

    def _batch_size(self) -> int:
        """Over all GPUs; MMSegmentation says it in the file's name only."""
        base = self.cfg.get("auto_scale_lr", {}).get("base_batch_size")
        if base:
            return base
        gpus, images = re.search(r"_(\d+)xb(\d+)-", self.name).groups()
        return int(gpus) * int(images)


def find_configs(root: Path) -> list[str]:
    """Paths of the zoo's configs, relative to the checkout ``root``: not quickstarts and ablations."""
    folder = root / "configs"
    return sorted(
        path.relative_to(root).as_posix()
        for path in folder.rglob("*.py")
        if not {"_base_", "quickstart", "ablation"} & set(path.relative_to(folder).parts)
    )


def backbone_of(path: str) -> str | None:
    """The short name of the backbone that a config's file name has; None: there is none in it."""
    return next((part for part in Path(path).stem.split("_") if part in BACKBONES), None)


def read_config(root: Path, path: str) -> ZooConfig:
    """Read one of :func:`find_configs`.

    Raises:
        UserError: it cannot be read, or its name and its backbone are not the same.
    """
    backbone = backbone_of(path)
    if backbone is None:
        raise UserError(
            f"{path}: no backbone in the file's name: use a short name such as flatten-pvt-t"
        )
    cfg = load_config(root / path)
    differing = _differences(cfg.model.backbone, BACKBONES[backbone])
    if differing:
        raise UserError(
            f"{path}: its backbone is not {backbone}, it has another {', '.join(differing)}: correct "
            "the config or its name"
        )
    return ZooConfig(path, backbone, cfg)


def _differences(backbone: Mapping[str, Any], named: Mapping[str, Any]) -> list[str]:
    """The arguments that make a backbone and differ between two configs of one."""
    if backbone["type"] != named["type"]:
        return ["type"]
    ours, theirs = _identity(backbone), _identity(named)
    return [key for key, value in theirs.items() if ours[key] != value]


def _identity(backbone: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that make a backbone, defaults included; not the training's."""
    cls = MODELS.get(backbone["type"])
    parameters = signature(cls).parameters
    values = {
        key: backbone.get(key, parameters[key].default) for key in IDENTITY & parameters.keys()
    }
    values = {key: tuple(v) if isinstance(v, list | str) else v for key, v in values.items()}
    return values | {"arch": resolve_arch(backbone["arch"], cls.arch_zoo)}


def _inner_dataset(dataset: ConfigDict) -> tuple[ConfigDict, int]:
    """The data set inside its wrappers, and how often an epoch repeats it."""
    repeats = 1
    while dataset.type == "RepeatDataset":
        repeats *= dataset.times
        dataset = dataset.dataset
    return dataset, repeats
