"""A ready config for a zoo model and a folder of one's own: COCO, or what :mod:`.formats` converts."""

import colorsys
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...backbones.weights import RELEASE_PAGE
from ...cli import command_line
from ...config import CONFIGS, find_config, has_mask_head, is_segmentor, pretrained_weights
from ...errors import UserError, listed, printable, warn_once
from ...files.atomic import (
    UnwritableError,
    partial_folder,
    refuse_overwriting,
    replace_folder,
    write_atomically,
)
from ..tiling import Tiling
from .coco_file import (
    SPLITS,
    CocoFile,
    Division,
    check_images,
    completed,
    divide,
    divide_by_name,
    find_annotation_files,
    find_image_folder,
    read_coco_file,
    with_slashes,
)
from .cut import cut_into_tiles
from .formats import convert, find_format
from .image_size import ImageSize, anchor_changes, choose_image_size, sizes_of_file
from .masks import (
    NoLabelMapsError,
    dataset_changes,
    find_pairs,
    has_label_maps,
    write_label_maps,
)
from .zoo_config import (
    SEGMENTOR,
    Code,
    assignments,
    data_changes,
    detector_like,
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
    looked for. ``division`` says which of the training images to hold back for validation. ``image_size`` is
    what to resize to, (width, height); None: chosen. ``tiling`` is how to cut the training images of a
    detector into tiles; None: not at all. ``format`` is ``coco`` or a name in
    :data:`.formats.FORMATS`; None: what is found. ``classes`` are all classes of other formats than COCO in
    their order; None: as they are found.
    """

    annotations: dict[str, Path]
    images: dict[str, Path]
    division: Division | None = None
    image_size: tuple[int, int] | None = None
    tiling: Tiling | None = None
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
    splits, written = _splits(folder, zoo_config, out, options)
    classes = _classes(*splits.values())
    for file in splits.values():
        missing, count = file.without_masks(), len(file.content["annotations"])
        if missing and has_mask_head(cfg):
            raise UserError(
                f"{zoo_config} learns masks, but {missing} of {count} annotations in {file.path} have no "
                f"segmentation: choose a detector of boxes such as {detector_like(zoo_config)}"
            )
    train, val = ({splits[s].images / name for name in splits[s].image_names} for s in SPLITS)
    if shared := train & val:
        warn_once(
            f"{len(shared)} images are for training and for validation, which then tells little"
        )
    with ExitStack() as stack:
        moved = {}
        if options.tiling:
            partial = stack.enter_context(partial_folder(out.resolve().parent))
            moved = _cut(splits, written, out, options, partial / "tiles")
        sizes = sizes_of_file(splits["train"])
        size = choose_image_size(cfg, sizes, options.image_size)
        sides = sizes.resized(size.scale) if size.scale else sizes.objects
        anchors, anchor_line = anchor_changes(cfg.model, sides)
        values = _values(cfg, zoo_config, folder, out, classes, None, size, anchors, options)
        values |= data_changes(cfg, folder, **splits, size=size)
        text = f"{_DOCSTRING}\n\n{assignments(values)}"
        _write_all({**written, out: text.encode()}, moved, options.force)
    print(f"{len(classes)} classes: {printable(listed(classes))}")
    for name, file in splits.items():
        images, objects = len(file.image_names), len(file.content["annotations"])
        print(f"{name}: {images} images in {file.images}, {objects} objects in {file.path}")
    print("\n".join(filter(None, (size.reason, anchor_line))))
    _say_what_to_do(cfg, out, options)


def _cut(
    splits: dict[str, CocoFile],
    written: dict[Path, bytes],
    out: Path,
    options: CustomDataOptions,
    folder: Path,
) -> dict[Path, Path]:
    """Take tiles, which are written into the folder, for the training; returns where it is to be moved."""
    place, path = _beside(out, "tiles"), _beside(out, f"{SPLITS[0]}.json")
    whole = splits["train"]
    if whole.path not in written:
        refuse_overwriting([whole.path], [path], "--out")
    # Before the work, which may be long.
    _refuse_existing([place, path, *written, out], options.force)
    content = cut_into_tiles(whole, folder, options.tiling)
    print(f"train: {len(whole.image_names)} images are cut into {len(content['images'])} tiles")
    splits["train"] = CocoFile(path, content, images=place)
    written[path] = json.dumps(content).encode()
    return {place: folder}


def _write_segmentor_config(
    cfg: Config, folder: Path, zoo_config: Path, out: Path, options: CustomDataOptions
) -> None:
    if options.annotations or options.images or options.format or options.tiling:
        raise UserError(
            f"{zoo_config} learns from label maps: --format, --tile and COCO's options are for detectors"
        )
    targets, names = ({s: _beside(out, f"{s}{end}") for s in SPLITS} for end in ("_labels", ".txt"))
    try:
        pairs = find_pairs(folder, targets.values())
    except NoLabelMapsError as error:
        form = find_format(folder)
        if form is None:
            raise
        raise UserError(
            f"{folder} holds objects ({form}), and {zoo_config} learns from label maps: choose a detector "
            f"such as {detector_like(zoo_config)}, or export label maps (PNG)"
        ) from error
    if options.division is not None:
        parts = divide_by_name(
            pairs["train"], options.division, lambda p: p.image.relative_to(folder).as_posix()
        )
        pairs = dict(zip(SPLITS, parts, strict=True))
    if missing := [split for split in SPLITS if not pairs.get(split)]:
        raise UserError(
            f"{folder}: no images for {missing[0]}: hold a part of them back by --val-fraction 0.2"
        )
    _refuse_existing([*targets.values(), *names.values(), out], options.force)
    with partial_folder(out.resolve().parent) as partial:
        places = {split: partial / split for split in pairs}
        data = write_label_maps(folder, pairs, places, options.classes)
        size = choose_image_size(cfg, data.regions, options.image_size)
        written, datasets = {}, {}
        for split, own in pairs.items():
            images = [pair.image.relative_to(folder).as_posix() for pair in own]
            written[names[split]] = "".join(f"{name}\n" for name in images).encode()
            datasets[split] = {
                **dataset_changes(targets[split].as_posix(), names[split].as_posix()),
                "data_root": Code("data_root"),
                "metainfo": Code("metainfo"),
            }
        values = _values(
            cfg, zoo_config, folder, out, data.classes, data.palette, size, {}, options
        )
        values |= segmentation_changes(cfg, datasets, size)
        text = f"{_DOCSTRING}\n\n{assignments(values)}"
        moved = {targets[split]: place for split, place in places.items()}
        _write_all({**written, out: text.encode()}, moved, options.force)
    print(f"{len(data.classes)} classes: {printable(listed(data.classes))}")
    for split, own in pairs.items():
        print(f"{split}: {len(own)} images with label maps")
    print(size.reason)
    _say_what_to_do(cfg, out, options)


def _values(
    cfg: Config,
    zoo_config: Path,
    folder: Path,
    out: Path,
    classes: tuple[str, ...],
    palette: list[tuple[int, int, int]] | None,
    size: ImageSize,
    anchors: dict[str, dict],
    options: CustomDataOptions,
) -> dict[str, Any]:
    """What the written config begins with."""
    more = {**(size.model_changes(cfg.model) if size.is_new else {}), **anchors}
    return {
        "_base_": _base_path(zoo_config, out),
        "classes": classes,
        "num_classes": Code("len(classes)"),
        "metainfo": {"classes": Code("classes"), "palette": palette or _palette(len(classes))},
        "data_root": f"{folder.as_posix()}/",
        "model": model_changes(cfg, options.from_scratch, more),
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


def _beside(out: Path, end: str) -> Path:
    return out.resolve().with_name(f"{out.stem}_{end}")


def _splits(
    folder: Path, zoo_config: Path, out: Path, options: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    """Training and validation, and the annotation files that have to be written for them."""
    made = [_beside(out, f"{split}.json") for split in SPLITS]
    form = options.format or ("coco" if options.annotations else find_format(folder, made))
    if form is None and has_label_maps(folder):
        raise UserError(
            f"{folder} holds label maps and no objects, and {zoo_config} learns from objects: choose a "
            f"semantic segmentor such as {SEGMENTOR}"
        )
    if form is None:
        raise UserError(
            f"{folder} holds no annotations in a known form (COCO, YOLO with data.yaml or classes.txt, "
            "Pascal VOC, labelme): check the folder"
        )
    if form == "coco":
        return _splits_of_coco(folder, out, made, options)
    if options.annotations or options.images:
        raise UserError(
            f"{folder}: --train-ann, --train-images and the like are for COCO, not for {form}"
        )
    files = convert(form, folder, options.classes)
    if options.division is not None:
        files = {"train": files["train"]}
    elif "val" not in files:
        raise UserError(
            f"{folder}: all images are for training: hold part of them back by --val-fraction 0.2"
        )
    return _to_write(out, files, [], options)


def _splits_of_coco(
    folder: Path, out: Path, made: list[Path], options: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    if options.classes:
        raise UserError("--classes: COCO files have their own; it is for other formats")
    paths = dict(options.annotations)
    if options.division is None or "train" not in paths:
        paths = find_annotation_files(folder, paths, made)
    if options.division is not None:
        paths.pop("val", None)
    elif "val" not in paths:
        raise UserError(
            f"{folder}: no validation annotations beside {paths['train'].name}: name them by --val-ann, "
            "or hold part of the images back by --val-fraction 0.2"
        )
    files = {
        name: _with_images(
            folder, read_coco_file(paths[name].resolve(), folder), name, options.images
        )
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
            contents[name] = content
        if added and file.path.is_file():  # Else objects of another form, which are told already.
            print(f"{file.path}: completed by {', '.join(added)}")
    if "val" not in splits:
        parts = divide(splits["train"], options.division)
        contents = dict(zip(SPLITS, parts, strict=True))
        splits["val"] = splits["train"]
    written = {}
    for name, content in contents.items():
        path = _beside(out, f"{name}.json")
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


def _refuse_existing(paths: Iterable[Path], force: bool) -> None:
    there = [path for path in paths if path.exists()]
    if there and not force:
        raise UserError(f"{listed(there)} exists: name another --out, or overwrite by --force")
    for folder in filter(Path.is_dir, there):
        if others := [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".png"]:
            raise UserError(
                f"{folder} holds more than label maps ({listed(others)}): name another --out"
            )


def _write_all(files: dict[Path, bytes], folders: dict[Path, Path], force: bool) -> None:
    """Write files, and move folders to their places."""
    _refuse_existing([*folders, *files], force)
    is_new = [path for path in (*folders, *files) if not path.exists()]
    try:
        for target, folder in folders.items():
            replace_folder(folder, target)
        for path, content in files.items():
            write_atomically(path, content)
    except UnwritableError:
        # A part of them would be in the way of the next attempt.
        for path in is_new:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
