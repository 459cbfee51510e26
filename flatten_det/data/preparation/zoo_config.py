"""What a config of the zoo must change to learn other classes from other files, as Python text."""

from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...config import (
    datasets_under_test,
    find_field,
    has_mask_head,
    load_config,
    our_configs,
    pretrained_weights,
    type_name,
)
from ...errors import UserError
from .coco_file import CocoFile
from .image_size import ImageSize

DETECTOR = "retinanet_flatten-pvt-t_fpn_1x_coco"
INSTANCES = "mask-rcnn_flatten-pvt-t_fpn_1x_coco"
SEGMENTOR = "flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512"
_CLASS_COUNTS = ("num_classes", "num_things_classes")
_SECTIONS = (
    "model",
    *(f"{split}_dataloader" for split in ("train", "val", "test")),
    *(f"{split}_evaluator" for split in ("val", "test")),
)
# The rest of a data set's options belongs to its type.
_KEPT = ("filter_cfg", "test_mode")
LINE_LENGTH = 100
_FITS = -(10**9)  # Characters before what is never broken.


def detector_like(config: Path) -> str:
    """The name of the config of a detector of boxes with the backbone of this one, or of a usual one."""
    parts = config.stem.split("_")
    detectors = (name for name in our_configs() if name.startswith("retinanet_"))
    alike = [name for name in detectors if name.split("_")[1] in parts]
    return min(alike, key=len, default=DETECTOR)


class Code(str):
    """An expression, to be written as it is."""


def assignments(values: dict[str, Any]) -> str:
    """One assignment per entry."""
    return "".join(f"{name} = {literal(value, len(name) + 3)}\n" for name, value in values.items())


def literal(value: Any, used: int = 0, indent: str = "") -> str:
    """Write a value in the style of the zoo's configs: ``dict(...)``, broken where a line is too long.

    Of the first line, ``used`` characters are taken beside the indent.
    """
    if isinstance(value, str):
        return str(value) if isinstance(value, Code) else _string(value)
    if not isinstance(value, dict | list | tuple):
        return repr(value)
    if isinstance(value, dict):
        opening, closing, pairs = "dict(", ")", [(f"{key}=", item) for key, item in value.items()]
    else:
        opening, closing = "[]" if isinstance(value, list) else "()"
        pairs = [("", item) for item in value]
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    short = ", ".join(key + literal(item, _FITS) for key, item in pairs)
    short = f"{opening}{short}{comma}{closing}"
    if len(indent) + used + len(short) < LINE_LENGTH:
        return short
    deeper = indent + "    "
    lines = (f"{deeper}{key}{literal(item, len(key) + 1, deeper)},\n" for key, item in pairs)
    return f"{opening}\n{''.join(lines)}{indent}{closing}"


def _string(value: str) -> str:
    text = repr(value)
    if text[0] == "'" and '"' not in text and "\\'" not in text:
        text = f'"{text[1:-1]}"'
    # mmengine replaces {{ ... }} in the text of a config, also within strings.
    return text.replace("{", r"\x7b") if "{{" in text else text


def load_zoo_config(path: Path) -> Config:
    """Read a config that learns from a COCO file of objects, or from label maps; UserError if it is none."""
    cfg = load_config(path)
    hint = f"choose a detector such as {DETECTOR}, or a semantic segmentor"
    if getattr(cfg, "_imported_names", None):  # mmengine's mark of them
        raise UserError(f"{path} names classes, and no config with _base_ can inherit it: {hint}")
    if missing := [name for name in _SECTIONS if not cfg.get(name)]:
        raise UserError(f"{path} is no complete config, it has no {', '.join(missing)}: {hint}")
    if find_field(cfg.model, "num_stuff_classes") not in (None, 0):
        raise UserError(
            f"{path} is for panoptic segmentation, which needs label maps besides a COCO file of "
            f"objects: {hint}, or, if the objects have masks, {INSTANCES}"
        )
    return cfg


def model_changes(cfg: Config, from_scratch: bool, more: dict[str, dict]) -> dict[str, Any]:
    """The model's fields that depend on the number of classes, in terms of ``num_classes``, and ``more``.

    UserError if a list in the model has to change in a way that is not known here.
    """
    changes = _count_changes(cfg.model.to_dict(), "_base_.model")
    for part, fields in more.items():
        changes[part] = {**changes.get(part, {}), **fields}
    if from_scratch and pretrained_weights(cfg):
        changes["backbone"] = {"init_cfg": None}
    return changes


def _count_changes(node: dict[str, Any], place: str) -> dict[str, Any]:
    changes: dict[str, Any] = {key: Code("num_classes") for key in _CLASS_COUNTS if key in node}
    for key, value in node.items():
        if isinstance(value, dict):
            inner = _count_changes(value, f"{place}.{key}")
            weights, count = value.get("class_weight"), node.get("num_classes")
            if isinstance(weights, list) and (
                "num_things_classes" in node or len(weights) - 1 == count
            ):
                # One weight per class, and that of "no object".
                inner["class_weight"] = Code(f"[1.0] * num_classes + [{weights[-1]}]")
            elif isinstance(weights, list):
                inner["class_weight"] = None  # Of the other classes.
            if inner:
                changes[key] = inner
        elif isinstance(value, list | tuple) and find_field(value, "num_classes") is not None:
            if not all(isinstance(v, dict) and "num_classes" in v for v in value):
                raise UserError(
                    f"{place}.{key} holds heads of different kinds: choose another config such as "
                    f"{DETECTOR}"
                )
            # A config cannot change the items of an inherited list.
            changes[key] = Code(f"[dict(head, num_classes=num_classes) for head in {place}.{key}]")
    return changes


def data_changes(
    cfg: Config, root: Path, train: CocoFile, val: CocoFile, size: ImageSize
) -> dict[str, Any]:
    """The data loaders and evaluators, in terms of ``data_root``, which is ``root``, and ``metainfo``.

    UserError if the config has several data sets for a split, or no COCO evaluation.
    """
    changes = {"train_dataloader": _loader_changes(cfg, "train_dataloader", root, train, size)}
    for split in ("val", "test"):
        loader, evaluator = f"{split}_dataloader", f"{split}_evaluator"
        changes[loader] = _loader_changes(cfg, loader, root, val, size)
        changes[evaluator] = _evaluator_changes(cfg, evaluator, root, val)
    for kind in ("dataloader", "evaluator"):
        if cfg[f"test_{kind}"] == cfg[f"val_{kind}"]:
            changes[f"test_{kind}"] = Code(f"val_{kind}")
    return changes


def segmentation_changes(
    cfg: Config, datasets: dict[str, dict[str, Any]], size: ImageSize
) -> dict[str, Any]:
    """The data loaders and evaluators of a segmentor, with these fields of its data sets by split.

    UserError if the config has several data sets for a split.
    """
    changes = {}
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        if "pipeline" not in dataset:
            raise UserError(
                f"{split}_dataloader joins or repeats data sets: choose a config with one of its own"
            )
        steps = _resizing(dataset.pipeline, cfg, size, is_tested=split != "train")
        for step in steps:
            if type_name(step) == "LoadAnnotations":
                step.pop("reduce_zero_label", None)
        kept = {key: _plain(dataset[key]) for key in ("test_mode",) if key in dataset}
        fields = {**datasets["train" if split == "train" else "val"], **kept, "pipeline": steps}
        changes[f"{split}_dataloader"] = {"dataset": fields}
    if cfg.test_dataloader == cfg.val_dataloader:
        changes["test_dataloader"] = Code("val_dataloader")
    evaluator = {"_delete_": True, "type": "IoUMetric", "iou_metrics": ["mIoU"]}
    return {**changes, "val_evaluator": evaluator, "test_evaluator": Code("val_evaluator")}


def _relative(path: Path, root: Path) -> str:
    """A path as a config writes it: relative to ``data_root`` if it lies there."""
    if not path.is_relative_to(root):
        return path.as_posix()
    return "" if path == root else path.relative_to(root).as_posix()


def _loader_changes(
    cfg: Config, name: str, root: Path, file: CocoFile, size: ImageSize
) -> dict[str, Any]:
    dataset, place = cfg[name].dataset, f"_base_.{name}.dataset"
    wrappers = [cfg[name]]
    while "dataset" in dataset:  # RepeatDataset, MultiImageMixDataset and the like.
        wrappers.insert(0, dataset)
        dataset, place = dataset.dataset, f"{place}.dataset"
    if "datasets" in dataset:
        raise UserError(
            f"{name} joins several data sets: choose a config with one, such as {DETECTOR}"
        )
    changes = {
        "data_root": Code("data_root"),
        "ann_file": _relative(file.path, root),
        "data_prefix": {"img": _relative(file.images, root)},
        "metainfo": Code("metainfo"),
    }
    is_wrapped = any(wrapper.get("pipeline") for wrapper in wrappers)
    steps = _resizing(dataset.pipeline, cfg, size, name != "train_dataloader", is_wrapped)
    for step in steps:
        if step.get("with_mask") and file.without_masks() and not has_mask_head(cfg):
            step["with_mask"] = False
    if steps != [_plain(step) for step in dataset.pipeline]:
        changes["pipeline"] = steps
    if type_name(dataset) != "CocoDataset":
        changes = {"_delete_": True, "type": "CocoDataset", **changes}
        changes |= {key: _plain(dataset[key]) for key in _KEPT if key in dataset}
        changes.setdefault("pipeline", Code(f"{place}.pipeline"))
    elif set(dataset.get("data_prefix", {})) - {"img"}:
        changes["data_prefix"] = {"_delete_": True, **changes["data_prefix"]}
    for wrapper in wrappers:
        changes = {"dataset": changes}
        if size.is_new and wrapper.get("pipeline"):
            changes["pipeline"] = [size.step(step) for step in wrapper.pipeline]
    return changes


def _resizing(
    pipeline: list, cfg: Config, size: ImageSize, is_tested: bool, is_wrapped: bool = False
) -> list[dict]:
    """The steps, resizing to this size; also those made for images of the training's size, without Resize.

    ``is_wrapped``: it is another pipeline's, around this one, to resize.
    """
    steps = [size.step(step) if size.is_new else _plain(step) for step in pipeline]
    keys = ("scale", "scales", "scale_factor")
    if is_wrapped or any(find_field(step, key) is not None for step in steps for key in keys):
        return steps
    test_steps = (_plain(step) for step in datasets_under_test(cfg)[0].pipeline)
    resize = next((step for step in test_steps if type_name(step) == "Resize"), None)
    if size.is_new:
        resize = size.step(resize or {"type": "Resize", "keep_ratio": True})
    loading = [i for i, step in enumerate(steps) if type_name(step).startswith("Load")]
    if resize is not None and loading:
        # Where a test pipeline reads the ground truth, it is that of the whole image.
        steps.insert((loading[0] if is_tested else loading[-1]) + 1, resize)
    return steps


def _evaluator_changes(cfg: Config, name: str, root: Path, file: CocoFile) -> dict[str, Any]:
    in_list = isinstance(cfg[name], list | tuple)
    metrics = [m for m in (cfg[name] if in_list else [cfg[name]]) if type_name(m) == "CocoMetric"]
    if not metrics:
        raise UserError(f"the config has no CocoMetric: choose another one such as {DETECTOR}")
    ann_file = _relative(file.path, root)
    if file.path.is_relative_to(root):
        ann_file = Code(f"data_root + {literal(ann_file)}")
    if not in_list:
        return {"ann_file": ann_file}
    metric = {"type": "CocoMetric", "ann_file": ann_file, "metric": _plain(metrics[0]["metric"])}
    return {"_delete_": True, **metric}


def _plain(value: Any) -> Any:
    """Without mmengine's types, and without the scope, which it adds to what it inherits."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "_scope_"}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value
