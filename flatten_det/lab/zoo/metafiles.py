"""The zoo's configs, and their metafiles: one per family of backbones, in OpenMMLab's format."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.registry import MODELS

from ...backbones import BACKBONES
from ...backbones.options import resolve_arch
from ...backbones.weights import OFFICIAL_CHECKPOINTS
from ...config import load_config
from ...errors import UserError
from ..complexity import SAMPLING, build_without_values, count_model
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


MODEL_INDEX = "model-index.yml"
METAFILES = [f"configs/{folder}/metafile.yml" for folder, _ in FAMILIES.values()]
HEADER = (
    "# Metadata is computed from the configs by tools/update_zoo.py; Collections and Results are kept by "
    "hand.\n"
)
_COUNTS = ("Parameters", "FLOPs")
_FLOPS_STEP = 10_000_000  # The zoo page shows hundredths of G.


def read_metafile(root: Path, path: str) -> dict[str, Any]:
    """The content of a metafile; UserError if it is missing, no YAML, or has no lists where it needs them."""
    try:
        content = yaml.safe_load((root / path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing: write its Collections first") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: no YAML: {' '.join(str(error).split())}") from error
    for key in ("Collections", "Models"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and "Name" in entry for entry in entries
        ):
            raise UserError(f"{path}: {key} is not a list of entries with a Name: write one")
    for entry in content["Models"]:
        if not isinstance(entry.get("Results", []), list):
            raise UserError(f"{path}: {entry['Name']}: Results is not a list: make it one")
    return content


def dump(content: dict[str, Any], header: str = "") -> str:
    """YAML in the order of ``content``."""
    return header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def misfits(path: str, content: dict[str, Any]) -> Iterator[str]:
    """What only a person can put right in the part of a metafile that is kept by hand."""
    collections = {entry["Name"] for entry in content["Collections"]}
    for entry in content["Models"]:
        where = f"{path}: {entry['Name']}"
        if entry["In Collection"] not in collections:
            yield f"{where}: no collection {entry['In Collection']} in this file: add it"
        for result in entry.get("Results", ()):
            missing = {"Task", "Dataset", "Metrics", "Source"} - result.keys()
            if missing:
                yield f"{where}: a result without {', '.join(sorted(missing))}: say it"


def make_entry(config: ZooConfig, old: dict[str, Any], count: bool) -> dict[str, Any]:
    """The entry of a config: what is computed, then what its entry so far, ``old``, has besides.

    ``count`` counts parameters and FLOPs, else only if ``old`` does not have them for this input size.
    UserError if something in the model cannot be counted.
    """
    metadata = config.metadata()
    before = old.get("Metadata", {})
    known = before.get("Input Size") == metadata["Input Size"] and before.keys() >= set(_COUNTS)
    if count or not known:
        complexity = count_model(build_without_values(config.cfg), training_size(config.cfg))
        if unknown := complexity.uncounted.keys() - SAMPLING:
            raise UserError(
                f"{config.path}: no FLOP formula for {', '.join(sorted(unknown))}: add it to "
                "flatten_det/lab/complexity/counter.py"
            )
        counts = (complexity.parameters, round(complexity.macs / _FLOPS_STEP) * _FLOPS_STEP)
    else:
        counts = tuple(before[name] for name in _COUNTS)
    metadata |= zip(_COUNTS, counts, strict=True)
    # A copy of what the results say: the model-index library drops their fields that it does not know.
    sources = dict.fromkeys(result.get("Source") for result in old.get("Results", ()))
    if sources:
        metadata["Results Source"] = "; ".join(filter(None, sources))
    computed = {
        "Name": config.name,
        "In Collection": collection_of(config.backbone),
        "Config": config.path,
        "Metadata": metadata,
    }
    return computed | {key: value for key, value in old.items() if key not in computed}


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """One line for each field in which two entries of a config differ."""
    before, after = (
        {key: value for key, value in entry.items() if key != "Metadata"} | entry["Metadata"]
        for entry in ({"Metadata": {}} | old, new)
    )
    for key in dict.fromkeys([*after, *before]):
        if key not in after:
            yield f"{key} should not be there"
        elif key not in before:
            yield f"{key} is missing, should be {after[key]}"
        elif before[key] != after[key]:
            yield f"{key} is {before[key]}, should be {after[key]}"
