"""A ready config for a zoo model and a folder of one's own: COCO, or what :mod:`.formats` converts."""

import colorsys
import json
import os
import shutil
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...backbones.weights import RELEASE_PAGE
from ...cli import command_line
from ...config import CONFIGS, find_config, has_mask_head, is_segmentor, pretrained_weights
from ...errors import UserError, listed, printable, warn_once
from ...files import atomic
from ..tiling import Tiling
from . import coco_file, masks
from .coco_file import SPLITS, CocoFile, Division
from .cut import cut_into_tiles
from .formats import convert, find_format
from .image_size import anchor_changes, choose_image_size, sizes_of_file
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

    folder: Path
    zoo_config: Path
    out: Path
    annotations: dict[str, Path] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    division: Division | None = None
    image_size: tuple[int, int] | None = None
    tiling: Tiling | None = None
    from_scratch: bool = False
    force: bool = False
    format: str | None = None
    classes: tuple[str, ...] | None = None

    def beside(self, end: str) -> Path:
        """The place of a file or folder that belongs to the config, and whose name ends so."""
        return self.out.resolve().with_name(f"{self.out.stem}_{end}")


def write_config(asked: CustomDataOptions) -> None:
    """Write a config that trains a zoo model on a folder's data, and say what it holds.

    COCO files are written beside it where the folder has none, or its own are not complete, or divided.

    Raises:
        UserError: Data or config do not fit, or a file exists.
    """
    if asked.out.suffix != ".py":
        raise UserError(f"--out {asked.out}: a config's name ends in .py")
    for path in (asked.folder, *asked.annotations.values(), *asked.images.values()):
        if not path.exists():
            raise UserError(f"{path} not found: check the path (here: {Path.cwd()})")
    asked = replace(asked, folder=asked.folder.resolve(), zoo_config=find_config(asked.zoo_config))
    atomic.refuse_overwriting([asked.zoo_config], [asked.out], "--out")
    cfg = load_zoo_config(asked.zoo_config)
    write = _write_for_segmentor if is_segmentor(cfg) else _write_for_detector
    write(cfg, asked)
    for weights in () if asked.from_scratch else pretrained_weights(cfg):
        if "://" not in weights and not Path(weights).exists():
            print(
                f"{weights} is not there yet: get it from {RELEASE_PAGE}, or write the config "
                "with --from-scratch"
            )
    print(f"written to {asked.out}; train with\n  {command_line('train', [str(asked.out)])}")


def _write_for_detector(cfg: Config, asked: CustomDataOptions) -> None:
    splits, files = _splits(asked)
    classes = _classes(*splits.values())
    for file in splits.values():
        missing, count = file.without_masks(), len(file.content["annotations"])
        if missing and has_mask_head(cfg):
            raise UserError(
                f"{asked.zoo_config} learns masks, but {missing} of {count} annotations in {file.path} have "
                f"no segmentation: choose a detector of boxes such as {detector_like(asked.zoo_config)}"
            )
    train, val = ({splits[s].images / name for name in splits[s].image_names} for s in SPLITS)
    if shared := train & val:
        warn_once(
            f"{len(shared)} images are for training and for validation, which then tells little"
        )
    place = asked.out.resolve().parent
    with atomic.partial_folder(place) if asked.tiling else nullcontext() as partial:
        folders = _cut(splits, files, asked, partial / "tiles") if asked.tiling else {}
        sizes = sizes_of_file(splits["train"])
        size = choose_image_size(cfg, sizes, asked.image_size)
        sides = sizes.resized(size.scale) if size.scale else sizes.objects
        anchors, anchor_line = anchor_changes(cfg.model, sides)
        model = size.model_changes(cfg.model) | anchors
        data = data_changes(cfg, asked.folder, **splits, size=size)
        _write_all(cfg, asked, classes, _palette(len(classes)), model, data, files, folders)
    for name, file in splits.items():
        images, objects = len(file.image_names), len(file.content["annotations"])
        print(f"{name}: {images} images in {file.images}, {objects} objects in {file.path}")
    print("\n".join(filter(None, (size.reason, anchor_line))))


def _cut(
    splits: dict[str, CocoFile], files: dict[Path, bytes], asked: CustomDataOptions, folder: Path
) -> dict[Path, Path]:
    """Take tiles, which are written into the folder, for the training; returns where it is to be moved."""
    place, path = asked.beside("tiles"), asked.beside(f"{SPLITS[0]}.json")
    whole = splits["train"]
    if whole.path not in files:
        atomic.refuse_overwriting([whole.path], [path], "--out")
    # Before the work, which may be long.
    _refuse_existing([place, path, *files, asked.out], asked.force)
    content = cut_into_tiles(whole, folder, asked.tiling)
    print(f"train: {len(whole.image_names)} images are cut into {len(content['images'])} tiles")
    splits["train"] = CocoFile(path, content, images=place)
    files[path] = json.dumps(content).encode()
    return {place: folder}


def _write_for_segmentor(cfg: Config, asked: CustomDataOptions) -> None:
    folder, zoo_config = asked.folder, asked.zoo_config
    if asked.annotations or asked.images or asked.format or asked.tiling:
        raise UserError(
            f"{zoo_config} learns from label maps: --format, --tile and COCO's options are for detectors"
        )
    targets, names = ({s: asked.beside(f"{s}{end}") for s in SPLITS} for end in ("_labels", ".txt"))
    try:
        pairs = masks.find_pairs(folder, targets.values())
    except masks.NoLabelMapsError as error:
        form = find_format(folder)
        if form is None:
            raise
        raise UserError(
            f"{folder} holds objects ({form}), and {zoo_config} learns from label maps: choose a detector "
            f"such as {detector_like(zoo_config)}, or export label maps (PNG)"
        ) from error
    if asked.division is not None:
        parts = coco_file.divide_by_name(
            pairs["train"], asked.division, lambda p: p.image.relative_to(folder).as_posix()
        )
        pairs = dict(zip(SPLITS, parts, strict=True))
    if missing := [split for split in SPLITS if not pairs.get(split)]:
        raise UserError(
            f"{folder}: no images for {missing[0]}: hold a part of them back by --val-fraction 0.2"
        )
    _refuse_existing([*targets.values(), *names.values(), asked.out], asked.force)
    with atomic.partial_folder(asked.out.resolve().parent) as partial:
        places = {split: partial / split for split in pairs}
        data = masks.write_label_maps(folder, pairs, places, asked.classes)
        size = choose_image_size(cfg, data.regions, asked.image_size)
        files, datasets = {}, {}
        for split, own in pairs.items():
            images = [pair.image.relative_to(folder).as_posix() for pair in own]
            files[names[split]] = "".join(f"{name}\n" for name in images).encode()
            datasets[split] = {
                **masks.dataset_changes(targets[split].as_posix(), names[split].as_posix()),
                "data_root": Code("data_root"),
                "metainfo": Code("metainfo"),
            }
        palette = data.palette or _palette(len(data.classes))
        changes = segmentation_changes(cfg, datasets, size)
        folders = {targets[split]: place for split, place in places.items()}
        model = size.model_changes(cfg.model)
        _write_all(cfg, asked, data.classes, palette, model, changes, files, folders)
    for split, own in pairs.items():
        print(f"{split}: {len(own)} images with label maps")
    print(size.reason)


def _write_all(
    cfg: Config,
    asked: CustomDataOptions,
    classes: tuple[str, ...],
    palette: list[tuple[int, int, int]],
    model: dict[str, Any],
    data: dict[str, Any],
    files: dict[Path, bytes],
    folders: dict[Path, Path],
) -> None:
    """Write the config, with changes of model and data, and other files, and move folders to their places."""
    values = {
        "_base_": _base_path(asked),
        "classes": classes,
        "num_classes": Code("len(classes)"),
        "metainfo": {"classes": Code("classes"), "palette": palette},
        "data_root": f"{asked.folder.as_posix()}/",
        "model": model_changes(cfg, asked.from_scratch, model),
    }
    text = f"{_DOCSTRING}\n\n{assignments(values | data)}"
    files = {**files, asked.out: text.encode()}
    _refuse_existing([*folders, *files], asked.force)
    is_new = [path for path in (*folders, *files) if not path.exists()]
    try:
        for target, folder in folders.items():
            atomic.replace_folder(folder, target)
        for path, content in files.items():
            atomic.write_atomically(path, content)
    except atomic.UnwritableError:
        # A part of them would be in the way of the next attempt.
        for path in is_new:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise
    print(f"{len(classes)} classes: {printable(listed(classes))}")


def _splits(asked: CustomDataOptions) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    """Training and validation, and the annotation files that have to be written for them."""
    folder = asked.folder
    made = [asked.beside(f"{split}.json") for split in SPLITS]
    form = asked.format or ("coco" if asked.annotations else find_format(folder, made))
    if form is None and masks.has_label_maps(folder):
        raise UserError(
            f"{folder} holds label maps and no objects, and {asked.zoo_config} learns from objects: choose a "
            f"semantic segmentor such as {SEGMENTOR}"
        )
    if form is None:
        raise UserError(
            f"{folder} holds no annotations in a known form (COCO, YOLO with data.yaml or classes.txt, "
            "Pascal VOC, labelme): check the folder"
        )
    if form == "coco":
        return _splits_of_coco(made, asked)
    if asked.annotations or asked.images:
        raise UserError(
            f"{folder}: --train-ann, --train-images and the like are for COCO, not for {form}"
        )
    files = convert(form, folder, asked.classes)
    if asked.division is not None:
        files = {"train": files["train"]}
    elif "val" not in files:
        raise UserError(
            f"{folder}: all images are for training: hold part of them back by --val-fraction 0.2"
        )
    return _to_write(files, [], asked)


def _splits_of_coco(
    made: list[Path], asked: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    if asked.classes:
        raise UserError("--classes: COCO files have their own; it is for other formats")
    paths = dict(asked.annotations)
    if asked.division is None or "train" not in paths:
        paths = coco_file.find_annotation_files(asked.folder, paths, made)
    if asked.division is not None:
        paths.pop("val", None)
    elif "val" not in paths:
        raise UserError(
            f"{asked.folder}: no validation annotations beside {paths['train'].name}: name them by "
            "--val-ann, or hold part of the images back by --val-fraction 0.2"
        )
    files = {}
    for split in filter(paths.get, SPLITS):
        file = coco_file.read_coco_file(paths[split].resolve(), asked.folder)
        files[split] = _with_images(file, split, asked)
    return _to_write(files, list(paths.values()), asked)


def _to_write(
    files: dict[str, CocoFile], inputs: list[Path], asked: CustomDataOptions
) -> tuple[dict[str, CocoFile], dict[Path, bytes]]:
    """The splits, completed or divided, and the files to write for that, none of them of ``inputs``."""
    splits, contents = {}, {}
    for name, file in files.items():
        content, added = coco_file.completed(file, file.images)
        splits[name] = replace(file, content=content)
        if added:
            contents[name] = content
        if added and file.path.is_file():  # Else objects of another form, which are told already.
            print(f"{file.path}: completed by {', '.join(added)}")
    if "val" not in splits:
        parts = coco_file.divide(splits["train"], asked.division)
        contents = dict(zip(SPLITS, parts, strict=True))
        splits["val"] = splits["train"]
    written = {}
    for name, content in contents.items():
        path = asked.beside(f"{name}.json")
        written[path] = json.dumps(content).encode()
        splits[name] = replace(splits[name], path=path, content=content)
    atomic.refuse_overwriting(inputs, written, "--out")
    return splits, written


def _with_images(file: CocoFile, split: str, asked: CustomDataOptions) -> CocoFile:
    """The file with its image folder; names of Windows are written with / unless files have them."""

    def with_folder(file: CocoFile) -> CocoFile:
        if split in asked.images:
            images = coco_file.check_images(asked.images[split].resolve(), file, split)
        else:
            images = coco_file.find_image_folder(asked.folder, file, split).resolve()
        return replace(file, images=images)

    try:
        return with_folder(file)
    except UserError:
        if os.sep == "\\" or not any("\\" in name for name in file.image_names):
            raise
    return with_folder(coco_file.with_slashes(file))


def _classes(train: CocoFile, val: CocoFile) -> tuple[str, ...]:
    if train.classes != val.classes:
        # MMDetection numbers the classes in the order of each file.
        different = sorted(set(train.classes) ^ set(val.classes))
        what = f"only one has {listed(different)}" if different else "their order differs"
        raise UserError(
            f"{train.path} and {val.path} have different categories ({what}): give both the same list"
        )
    return train.classes


def _base_path(asked: CustomDataOptions) -> str:
    """Relative if both lie below the current folder, so that it can be moved; ours by its name elsewhere."""
    here, base = Path.cwd().resolve(), asked.zoo_config.resolve()
    place = asked.out.parent.resolve()
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
