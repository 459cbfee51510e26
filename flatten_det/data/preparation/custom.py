"""A ready config for a zoo model and a folder of one's own: COCO, or what :mod:`.formats` converts."""

import colorsys
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...backbones.weights import RELEASE_PAGE
from ...cli import command_line
from ...config import CONFIGS, find_config, has_mask_head, is_segmentor, pretrained_weights
from ...errors import UserError, listed
from ...files.atomic import UnwritableError, refuse_overwriting, write_atomically
from ..coco import in_threads
from .coco_file import (
    SPLITS,
    CocoFile,
    check_images,
    completed,
    divide,
    divide_by_name,
    find_annotation_files,
    find_image_folder,
    read_coco_file,
    with_slashes,
)
from .formats import convert, find_format
from .masks import dataset_changes, label_map_content, read_masks
from .zoo_config import (
    DETECTOR,
    Code,
    assignments,
    data_changes,
    load_zoo_config,
    model_changes,
    segmentation_changes,
)

_DOCSTRING = (
    '"""A config of the zoo on data of one\'s own, written by flatten-det prepare custom."""'
)
_GOLDEN_RATIO = 0.618034


@dataclass(frozen=True)
class CustomDataOptions:
    """What the command line says about a folder.

    ``annotations`` and ``images`` are files and folders of COCO data by split; those that are left out are
    looked for. ``val_fraction`` is the part of the training images to hold back for validation, between 0 and
    1. ``format`` is ``coco`` or a name in :data:`.formats.FORMATS`; None: what is found. ``classes`` are all
    classes of other formats than COCO in their order; None: as they are found.
    """

    annotations: dict[str, Path]
    images: dict[str, Path]
    val_fraction: float | None = None
    from_scratch: bool = False
    force: bool = False
    format: str | None = None
    classes: tuple[str, ...] | None = None


def write_config(folder: Path, zoo_config: Path, out: Path, options: CustomDataOptions) -> None:
    """Write a config that trains a zoo model on a folder's data, and say what it holds.

    COCO files are written beside it where the folder has none, or its own are not complete, or divided.

    Raises:
        UserError: Data or config do not fit, or a file exists.
    """
    if out.suffix != ".py":
        raise UserError(f"--out {out}: a config's name ends in .py")
    for path in (folder, *options.annotations.values(), *options.images.values()):
        if not path.exists():
            raise UserError(f"{path} not found: check the path (here: {Path.cwd()})")
    zoo_config = find_config(zoo_config)
    refuse_overwriting([zoo_config], [out], "--out")
    folder = folder.resolve()
    cfg = load_zoo_config(zoo_config)
    if is_segmentor(cfg):
        _write_segmentor_config(cfg, folder, zoo_config, out, options)
        return
    splits, written = _splits(folder, out, options)
    classes = _classes(*splits.values())
    for file in splits.values():
        missing, count = file.without_masks(), len(file.content["annotations"])
        if missing and has_mask_head(cfg):
            raise UserError(
                f"{zoo_config} learns masks, but {missing} of {count} annotations in {file.path} have no "
                f"segmentation: choose a detector of boxes such as {DETECTOR}"
            )
    values = _values(cfg, zoo_config, folder, out, classes, None, options)
    values |= data_changes(cfg, folder, **splits)
    text = f"{_DOCSTRING}\n\n{assignments(values)}"
    _write_all({**written, out: text.encode()}, options.force)
    print(f"{len(classes)} classes: {listed(classes)}")
    for name, file in splits.items():
        images, objects = len(file.image_names), len(file.content["annotations"])
        print(f"{name}: {images} images in {file.images}, {objects} objects in {file.path}")
    _say_what_to_do(cfg, out, options)


def _write_segmentor_config(
    cfg: Config, folder: Path, zoo_config: Path, out: Path, options: CustomDataOptions
) -> None:
    if options.annotations or options.images or options.format:
        raise UserError(
            f"{zoo_config} learns from label maps: --format and COCO's options are for detectors"
        )
    data = read_masks(folder, options.classes)
    pairs = dict(data.pairs)
    if options.val_fraction is not None:
        parts = divide_by_name(pairs["train"], options.val_fraction, lambda pair: pair.image.name)
        pairs = dict(zip(SPLITS, parts, strict=True))
    if missing := [split for split in SPLITS if not pairs.get(split)]:
        raise UserError(
            f"{folder}: no images for {missing[0]}: hold a part of them back by --val-fraction 0.2"
        )
    place = out.resolve()
    written, datasets = {}, {}
    for split, own in pairs.items():
        labels, names = (place.with_name(f"{out.stem}_{split}{end}") for end in ("_labels", ".txt"))
        images = [pair.image.relative_to(folder).as_posix() for pair in own]
        written[names] = "".join(f"{name}\n" for name in images).encode()
        contents = in_threads(
            lambda pair: label_map_content(pair, data), own, f"Label maps, {split}"
        )
        for name, content in zip(images, contents, strict=True):
            written[labels / f"{name}.png"] = content
        datasets[split] = {
            **dataset_changes(labels.as_posix(), names.as_posix()),
            "data_root": Code("data_root"),
            "metainfo": Code("metainfo"),
        }
    values = _values(cfg, zoo_config, folder, out, data.classes, data.palette, options)
    values |= segmentation_changes(cfg, datasets)
    text = f"{_DOCSTRING}\n\n{assignments(values)}"
    _write_all({**written, out: text.encode()}, options.force)
    print(f"{len(data.classes)} classes: {listed(data.classes)}")
    for split, own in pairs.items():
        print(f"{split}: {len(own)} images with label maps")
    _say_what_to_do(cfg, out, options)


def _values(
    cfg: Config,
    zoo_config: Path,
    folder: Path,
    out: Path,
    classes: tuple[str, ...],
    palette: list[tuple[int, int, int]] | None,
    options: CustomDataOptions,
) -> dict[str, Any]:
    """What the written config begins with."""
    return {
        "_base_": _base_path(zoo_config, out),
        "classes": classes,
        "num_classes": Code("len(classes)"),
        "metainfo": {"classes": Code("classes"), "palette": palette or _palette(len(classes))},
        "data_root": f"{folder.as_posix()}/",
        "model": model_changes(cfg, options.from_scratch),
    }


def _say_what_to_do(cfg: Config, out: Path, options: CustomDataOptions) -> None:
    for weights in () if options.from_scratch else pretrained_weights(cfg):
        if "://" in weights or Path(weights).exists():
            continue
        print(
            f"{weights} is not there yet: get it from {RELEASE_PAGE}, or write the config "
            "with --from-scratch"
        )
    print(f"written to {out}; train with\n  {command_line('train', [str(out)])}")


def _splits(
    folder: Path, out: Path, options: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    """Training and validation, and the annotation files that have to be written for them."""
    form = options.format or ("coco" if options.annotations else find_format(folder))
    if form == "coco":
        return _splits_of_coco(folder, out, options)
    if options.annotations or options.images:
        raise UserError(
            f"{folder}: --train-ann, --train-images and the like are for COCO, not for {form}"
        )
    files = convert(form, folder, options.classes)
    if options.val_fraction is not None:
        files = {"train": files["train"]}
    elif "val" not in files:
        raise UserError(
            f"{folder}: all images are for training: hold part of them back by --val-fraction 0.2"
        )
    return _to_write(out, files, [], options)


def _splits_of_coco(
    folder: Path, out: Path, options: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    if options.classes:
        raise UserError("--classes: COCO files have their own; it is for other formats")
    paths = dict(options.annotations)
    if options.val_fraction is None or "train" not in paths:
        paths = find_annotation_files(folder, paths)
    if options.val_fraction is not None:
        paths.pop("val", None)
    elif "val" not in paths:
        raise UserError(
            f"{folder}: no validation annotations beside {paths['train'].name}: name them by --val-ann, "
            "or hold part of the images back by --val-fraction 0.2"
        )
    files = {
        name: _with_images(folder, read_coco_file(paths[name].resolve()), name, options.images)
        for name in SPLITS
        if name in paths
    }
    return _to_write(out, files, list(paths.values()), options)


def _to_write(
    out: Path, files: dict[str, CocoFile], inputs: list[Path], options: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    """The splits, completed or divided, and the files to write for that, none of them of ``inputs``."""
    splits, contents = {}, {}
    for name, file in files.items():
        content, added = completed(file, file.images)
        splits[name] = replace(file, content=content)
        if added:
            print(f"{file.path}: completed by {', '.join(added)}")
            contents[name] = content
    if "val" not in splits:
        parts = divide(splits["train"], options.val_fraction)
        contents = dict(zip(SPLITS, parts, strict=True))
        splits["val"] = splits["train"]
    written = {}
    for name, content in contents.items():
        path = out.resolve().with_name(f"{out.stem}_{name}.json")
        written[path] = json.dumps(content).encode()
        splits[name] = replace(splits[name], path=path, content=content)
    refuse_overwriting(inputs, written, "--out")
    return splits, written


def _with_images(folder: Path, file: CocoFile, split: str, known: dict[str, Path]) -> CocoFile:
    """The file with its image folder; names of Windows are written with / unless files have them."""

    def images(file: CocoFile) -> Path:
        if split in known:
            return check_images(known[split].resolve(), file, split)
        return find_image_folder(folder, file, split).resolve()

    try:
        return replace(file, images=images(file))
    except UserError:
        if os.sep == "\\" or not any("\\" in name for name in file.image_names):
            raise
    file = with_slashes(file)
    return replace(file, images=images(file))


def _classes(train: CocoFile, val: CocoFile) -> tuple[str, ...]:
    if train.classes != val.classes:
        # MMDetection numbers the classes in the order of each file.
        different = sorted(set(train.classes) ^ set(val.classes))
        what = f"only one has {listed(different)}" if different else "their order differs"
        raise UserError(
            f"{train.path} and {val.path} have different categories ({what}): give both the same list"
        )
    return train.classes


def _base_path(zoo_config: Path, out: Path) -> str:
    """Relative if both lie below the current folder, so that it can be moved; ours by its name elsewhere."""
    here, base, place = Path.cwd().resolve(), zoo_config.resolve(), out.parent.resolve()
    if base.is_relative_to(here) and place.is_relative_to(here):
        return Path(os.path.relpath(base, place)).as_posix()
    if base.is_relative_to(CONFIGS):
        return f"flatten_det::{base.relative_to(CONFIGS).as_posix()}"
    return base.as_posix()


def _palette(count: int) -> list[tuple[int, int, int]]:
    """Colours (RGB, 0 to 255) whose hues lie far apart."""
    colours = [colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, 0.8, 0.95) for i in range(count)]
    return [tuple(round(255 * channel) for channel in colour) for colour in colours]


def _write_all(files: dict[Path, bytes], force: bool) -> None:
    there = [path for path in files if path.exists()]
    if there and not force:
        raise UserError(f"{listed(there)} exists: name another --out, or overwrite by --force")
    try:
        for path, content in files.items():
            write_atomically(path, content)
    except UnwritableError:
        # A part of them would be in the way of the next attempt.
        for path in files.keys() - set(there):
            path.unlink(missing_ok=True)
        raise
