"""The zoo's configs, and what each says about itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from ...backbones import BACKBONES
from ...backbones.options import resolve_arch
from ...backbones.weights import OFFICIAL_CHECKPOINTS
from ...config import load_config
from ...errors import UserError
from ..complexity.target import training_size

# Order of the families, methods and data sets here is their order on the zoo page.
FAMILIES = {
    "pvt": ("flatten_pvt", "PVT"),
    "pvtv2": ("flatten_pvt_v2", "PVTv2"),
    "swin": ("flatten_swin", "Swin"),
    "cswin": ("flatten_cswin", "CSwin"),
    "deit": ("flatten_deit", "DeiT"),
}
METHODS = {
    "retinanet": "RetinaNet",
    "mask_rcnn": "Mask R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "deformable_detr": "Deformable DETR",
    "dino": "DINO",
    "semantic_fpn": "Semantic FPN",
    "upernet": "UperNet",
    "segformer": "SegFormer",
    "mask2former": "Mask2Former",
}
DATASETS = {
    "CocoDataset": "COCO",
    "CocoPanopticDataset": "COCO panoptic",
    "ADE20KDataset": "ADE20K",
    "CityscapesDataset": "Cityscapes",
}
NOT_RELEASED = "not released"

# ImageNet-1K top-1 accuracy in percent of the softmax baselines, as arXiv 2308.00442, Fig. 6, reports it.
_BASELINE_TOP1 = {
    "pvt-t": 75.1,
    "pvt-s": 79.8,
    "pvtv2-b1": 78.7,
    "pvtv2-b2": 82.0,
    "swin-t": 81.3,
    "swin-s": 83.0,
    "swin-b": 83.5,
    "cswin-t": 82.7,
    "cswin-s": 83.6,
    "cswin-b": 84.2,
    "deit-t": 72.2,
}
# The arguments, beside arch, that tell backbones of one type apart.
_IDENTITY = {
    "attn_types",
    "la_sr_ratios",
    "la_window_size",
    "pretrain_img_size",
    "split_size",
    "window_size",
}


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


def metafile_of(backbone: str) -> str:
    """Path of the metafile that lists the configs of a backbone, relative to the checkout."""
    return f"configs/{FAMILIES[_base_name(backbone)[0]][0]}/metafile.yml"


def collection_of(backbone: str) -> str:
    """``flatten-swin-b-384`` -> ``FLatten-Swin``."""
    prefix = "FLatten-" if backbone.startswith("flatten-") else ""
    return prefix + FAMILIES[_base_name(backbone)[0]][1]


def title_of(backbone: str) -> str:
    """``flatten-swin-b-384`` -> ``FLatten-Swin-B-384``."""
    return f"{collection_of(backbone)}-{_base_name(backbone)[2].upper()}"


def _base_name(backbone: str) -> tuple[str, str, str]:
    """``flatten-swin-b-384`` -> ``swin``, ``-``, ``b-384``."""
    return backbone.removeprefix("flatten-").partition("-")


@dataclass(frozen=True)
class ZooConfig:
    """One config file: its path relative to the checkout, its backbone's short name and its content."""

    path: str
    backbone: str
    cfg: Config

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def metadata(self) -> dict[str, Any]:
        """The entry's ``Metadata``, but for what needs the model."""
        cfg = self.cfg
        dataset, repeats = cfg.train_dataloader.dataset, 1
        while dataset.type == "RepeatDataset":
            repeats *= dataset.times
            dataset = dataset.dataset
        if "max_epochs" in cfg.train_cfg:
            length = {"Epochs": cfg.train_cfg.max_epochs * repeats}
        else:
            length = {"Iterations": cfg.train_cfg.max_iters}
        height, width = training_size(cfg)
        return {
            "Training Data": DATASETS[dataset.type],
            **length,
            "Batch Size": cfg.auto_scale_lr.base_batch_size,
            "Architecture": [title_of(self.backbone), METHODS[self.path.split("/")[1]]],
            "Input Size": f"{height}x{width}",
            **_describe_pretraining(self.backbone, cfg.model.backbone.init_cfg.checkpoint),
        }


def read_config(root: Path, path: str) -> ZooConfig:
    """Read one of :func:`find_configs`; UserError if its name and its backbone are not the same."""
    backbone = backbone_of(path)
    if backbone is None:
        raise UserError(
            f"{path}: no backbone in the file's name: use a short name such as flatten-pvt-t"
        )
    cfg = load_config(root / path)
    if differing := _differences(cfg.model.backbone, BACKBONES[backbone]):
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
        key: backbone.get(key, parameters[key].default) for key in _IDENTITY & parameters.keys()
    }
    values = {key: tuple(v) if isinstance(v, list | str) else v for key, v in values.items()}
    return values | {"arch": resolve_arch(backbone["arch"], cls.arch_zoo)}


def _describe_pretraining(backbone: str, checkpoint: str) -> dict[str, str | int | float]:
    """The metadata of a config's ImageNet weights, the accuracy in percent where it is reported."""
    official = OFFICIAL_CHECKPOINTS.get(backbone.replace("-", "_"))
    if checkpoint.startswith("https://"):
        source, top1 = checkpoint, _BASELINE_TOP1.get(backbone)
    elif official is not None:
        source, top1 = official.page, official.top1
    else:
        source, top1 = NOT_RELEASED, None
    described = {
        "Pretraining Weights": checkpoint,
        "Pretraining Source": source,
        "Pretraining Data": "ImageNet-1K",
        "Pretraining Resolution": BACKBONES[backbone].get("pretrain_img_size", 224),
    }
    return described if top1 is None else described | {"Pretraining Top 1 Accuracy": top1}
