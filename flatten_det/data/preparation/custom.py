"""A ready config for a zoo model and a COCO-format folder of one's own."""

import colorsys
import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...backbones.weights import RELEASE_PAGE
from ...files.atomic import UnwritableError, refuse_overwriting, write_atomically
from ...errors import UserError
from .coco_file import CocoFile, completed, read_coco_file, with_slashes
from .coco_folder import (
    SPLITS,
    check_images,
    existing,
    find_annotation_files,
    find_image_folder,
    relative_to,
)
from .coco_split import divide
from .config_text import Code, assignments
from .text import listed
from .zoo_config import (
    DETECTOR,
    Data,
    data_changes,
    has_mask_head,
    load_zoo_config,
    model_changes,
    pretrained_weights,
)

_DOCSTRING = (
    '"""A config of the zoo on data of one\'s own, written by tools/prepare_data.py custom."""'
)
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class Wishes:
    """What the command line may say about a folder.

    Attributes:
        annotations: split -> annotation file; splits that are left out are looked for.
        images: split -> image folder; likewise.
        val_fraction: part of the training images to hold back for validation, between 0 and 1.
        from_scratch: train without pretrained weights.
        force: overwrite files that exist.
    """

    annotations: dict[str, Path]
    images: dict[str, Path]
    val_fraction: float | None = None
    from_scratch: bool = False
    force: bool = False


@dataclass(frozen=True)
class Split:
    """A checked part of the data.

    Attributes:
        file: its annotations.
        images: the folder that its file names are relative to.
    """

    file: CocoFile
    images: Path


def write_config(folder: Path, zoo_config: Path, out: Path, wishes: Wishes) -> None:
    """Write a config that trains a zoo model on a COCO-format folder, and say what it holds.

    Annotation files are written beside it where the folder's own are not complete, or are divided.

    Args:
        folder: the data.
        zoo_config: a detector's config.
        out: the file to write (``.py``).
        wishes: what is not to be found out.

    Raises:
        UserError: Data or config do not fit, or a file exists.
    """
    if out.suffix != ".py":
        raise UserError(f"--out {out}: a config's name ends in .py")
    existing([folder, *wishes.annotations.values(), *wishes.images.values()])
    refuse_overwriting([zoo_config], [out], "--out")
    folder = folder.resolve()
    cfg = load_zoo_config(zoo_config)
    splits, written = _splits(folder, out, wishes)
    classes = _classes(splits)
    _check_masks(splits, zoo_config, has_mask_head(cfg))
    data = {
        name: Data(
            relative_to(split.file.path, folder),
            relative_to(split.images, folder),
            has_masks=split.file.without_masks() == 0,
        )
        for name, split in splits.items()
    }
    text = _config_text(cfg, zoo_config, out, folder, classes, data, wishes.from_scratch)
    _write_all({**written, out: text}, wishes.force)
    _report(cfg, out, splits, classes, wishes.from_scratch)


def _splits(folder: Path, out: Path, wishes: Wishes) -> tuple[dict[str, Split], dict[Path, str]]:
    """The two splits, and the annotation files that have to be written for them."""
    paths = dict(wishes.annotations)
    if wishes.val_fraction is None or "train" not in paths:
        paths = find_annotation_files(folder, paths)
    if wishes.val_fraction is not None:
        paths.pop("val", None)
    elif "val" not in paths:
        raise UserError(
            f"{folder}: no validation annotations beside {paths['train'].name}: name them by --val-ann, "
            "or hold part of the images back by --val-fraction 0.2"
        )
    splits, contents = {}, {}
    for name in SPLITS:
        if name in paths:
            file, images = _with_images(folder, read_coco_file(paths[name].resolve()), name, wishes)
            content, added = completed(file, images)
            splits[name] = Split(CocoFile(file.path, content), images)
            if added:
                print(f"{file.path}: completed by {', '.join(added)}")
                contents[name] = content
    if "val" not in splits:
        contents = dict(zip(SPLITS, divide(splits["train"].file, wishes.val_fraction), strict=True))
        splits["val"] = splits["train"]
    written = {}
    for name, content in contents.items():
        path = out.resolve().with_name(f"{out.stem}_{name}.json")
        written[path] = json.dumps(content)
        splits[name] = Split(CocoFile(path, content), splits[name].images)
    refuse_overwriting(paths.values(), written, "--out")
    return splits, written


def _with_images(folder: Path, file: CocoFile, split: str, wishes: Wishes) -> tuple[CocoFile, Path]:
    """The file and its image folder; names of Windows are written with / unless files have them."""
    try:
        return file, _images(folder, file, split, wishes)
    except UserError:
        if os.sep == "\\" or not any("\\" in name for name in file.image_names):
            raise
    file = with_slashes(file)
    return file, _images(folder, file, split, wishes)


def _images(folder: Path, file: CocoFile, split: str, wishes: Wishes) -> Path:
    if split not in wishes.images:
        return find_image_folder(folder, file, split).resolve()
    images = wishes.images[split].resolve()
    check_images(images, file, split)
    return images


def _classes(splits: dict[str, Split]) -> tuple[str, ...]:
    train, val = (splits[name].file for name in SPLITS)
    if train.classes != val.classes:
        # MMDetection numbers the classes in the order of each file.
        different = sorted(set(train.classes) ^ set(val.classes))
        what = f"only one has {listed(different)}" if different else "their order differs"
        raise UserError(
            f"{train.path} and {val.path} have different categories ({what}): give both the same list"
        )
    return train.classes


def _check_masks(splits: dict[str, Split], zoo_config: Path, needed: bool) -> None:
    for split in splits.values():
        missing = split.file.without_masks()
        if needed and missing:
            raise UserError(
                f"{zoo_config} learns masks, but {missing} of "
                f"{len(split.file.content['annotations'])} annotations in {split.file.path} have no "
                f"segmentation: choose a detector of boxes such as {DETECTOR}"
            )


def _config_text(
    cfg: Any,
    zoo_config: Path,
    out: Path,
    folder: Path,
    classes: tuple[str, ...],
    data: dict[str, Data],
    from_scratch: bool,
) -> str:
    values = {
        "_base_": _base_path(zoo_config, out),
        "classes": classes,
        "num_classes": Code("len(classes)"),
        "metainfo": {"classes": Code("classes"), "palette": _palette(len(classes))},
        "data_root": f"{folder.as_posix()}/",
        "model": model_changes(cfg, from_scratch),
        **data_changes(cfg, data["train"], data["val"]),
    }
    return f"{_DOCSTRING}\n\n{assignments(values)}"


def _base_path(zoo_config: Path, out: Path) -> str:
    """Relative as long as both lie below the current folder, so that a checkout can be moved."""
    here, base, place = Path.cwd().resolve(), zoo_config.resolve(), out.parent.resolve()
    if base.is_relative_to(here) and place.is_relative_to(here):
        return Path(os.path.relpath(base, place)).as_posix()
    return base.as_posix()


def _palette(count: int) -> list[tuple[int, int, int]]:
    """Colours (RGB, 0 to 255) whose hues lie far apart."""
    colours = [colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, 0.8, 0.95) for i in range(count)]
    return [tuple(round(255 * channel) for channel in colour) for colour in colours]


def _write_all(files: dict[Path, str], force: bool) -> None:
    there = [path for path in files if path.exists()]
    if there and not force:
        raise UserError(f"{listed(there)} exists: name another --out, or overwrite by --force")
    try:
        for path, text in files.items():
            write_atomically(path, text.encode())
    except UnwritableError:
        # A part of them would be in the way of the next attempt.
        for path in files.keys() - set(there):
            path.unlink(missing_ok=True)
        raise


def _report(
    cfg: Any, out: Path, splits: dict[str, Split], classes: tuple[str, ...], from_scratch: bool
) -> None:
    print(f"{len(classes)} classes: {listed(classes)}")
    for name, split in splits.items():
        content = split.file.content
        print(
            f"{name}: {len(content['images'])} images in {split.images}, "
            f"{len(content['annotations'])} objects in {split.file.path}"
        )
    weights = pretrained_weights(cfg)
    is_file = weights is not None and "://" not in weights
    if is_file and not from_scratch and not Path(weights).exists():
        print(
            f"{weights} is not there yet: get it from {RELEASE_PAGE}, or write the config "
            "with --from-scratch"
        )
    print(f"written to {out}; train with\n  uv run tools/train.py {shlex.quote(str(out))}")
