"""Images with label maps of one's own, for semantic segmentation: indices, 0 and 255, or colours.

Label maps are found beside the images or in a folder of their own, by the images' names, and written anew as
the frameworks read them: one channel of class indices, 255 where nothing counts.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ...errors import UserError, in_one_line, listed
from ...files.images import FORMATS, images_below, seen_size, why_not_decoded
from ...files.user_files import read_lines
from ..coco import in_threads
from .coco_file import SPLITS, split_of_folder

IGNORED = 255
BINARY = ("background", "foreground")
# Parts of the names of folders with label maps, and ends of the names of such files.
_FOLDER = re.compile(
    r"(?<![a-z])(masks?|labels?|labelmaps?|annotations?|gt|ground_?truth|seg\w*)", re.IGNORECASE
)
_END = re.compile(r"[_-](masks?|labels?|gt|seg|segmentation)$", re.IGNORECASE)
# What says which colour is which class: CVAT's labelmap.txt, class_dict.csv, and CamVid's label_colors.txt.
_COLOUR_LINES = (
    re.compile(r"^(?P<name>[^:#]+):(?P<colour>\d+,\d+,\d+)(:|$)"),
    re.compile(r"^(?P<name>[^,#]+),\s*(?P<colour>\d+\s*,\s*\d+\s*,\s*\d+)\s*$"),
    re.compile(r"^(?P<colour>\d+\s+\d+\s+\d+)\s+(?P<name>\S.*)$"),
)
_COLOUR_FILES = ("labelmap.txt", "class_dict.csv", "label_colors.txt")


class Pair(NamedTuple):
    """An image and its label map."""

    image: Path
    label_map: Path


class SegmentationData(NamedTuple):
    """What a folder holds.

    Attributes:
        classes: names in the order of the indices.
        palette: a colour (R, G, B) of each class, if the folder says so.
        pairs: images with label maps by split.
        is_binary: label maps of 0 and 255, the second class.
    """

    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]] | None
    pairs: dict[str, list[Pair]]
    is_binary: bool


def read_masks(folder: Path, classes: Sequence[str] | None = None) -> SegmentationData:
    """Find the images, label maps and classes of a folder; prints what is left out.

    Args:
        folder: of the data.
        classes: names in the order of the indices; None: those of the colour table, classes.txt or
            labels.txt, or ``background, foreground`` for label maps of 0 and 255.

    Raises:
        UserError: There are no label maps, one has no image or cannot be read, or the classes are not known.
    """
    pairs = _find_pairs(folder)
    table = _colour_table(folder)
    if table:
        names = tuple(classes or table)
        if set(names) != set(table):
            raise UserError(
                f"--classes are others than those of the colour table in {folder}: {listed(table)}"
            )
        return SegmentationData(names, [table[name] for name in names], pairs, False)
    every = [pair.label_map for of_split in pairs.values() for pair in of_split]
    values: set[int] = set()
    for path, found in zip(every, in_threads(_values, every, "Reading label maps"), strict=True):
        if found is None:
            raise UserError(
                f"{path} has colours; which class each means must be in one of {', '.join(_COLOUR_FILES)} in "
                f"{folder}, such as a line road:128,64,128"
            )
        values |= found
    is_binary = values <= {0, 255} and 255 in values and len(classes or BINARY) == 2
    names = tuple(classes or (BINARY if is_binary else _class_list(folder, values)))
    if (beyond := sorted(values - set(range(len(names))) - {IGNORED})) and not is_binary:
        raise UserError(
            f"{folder}: label maps have the values {listed(beyond)}, and there are {len(names)} classes, "
            "from 0 on: name all by --classes"
        )
    return SegmentationData(names, None, pairs, is_binary)


def _find_pairs(folder: Path) -> dict[str, list[Pair]]:
    label_maps, images = [], {}
    for path in images_below(folder):
        place = path.relative_to(folder).parent
        if _FOLDER.search(place.as_posix()) or _END.search(path.stem):
            label_maps.append(path)
        else:
            images.setdefault(path.stem, []).append(path)
    if not label_maps or not images:
        raise UserError(
            f"{folder}: no images with label maps: these belong into folders such as images/ and masks/, "
            "with equal names, or beside the images, as photo_mask.png of photo.jpg"
        )
    pairs: dict[str, list[Pair]] = {}
    taken = {}
    for path in label_maps:
        split = split_of_folder(path.parent, folder)
        stem = path.stem if path.stem in images else _END.sub("", path.stem)
        own = [i for i in images.get(stem, []) if split_of_folder(i.parent, folder) == split]
        if len(own) != 1:
            reason = (
                f"belongs to several images ({listed(own)})" if own else "has no image of its name"
            )
            raise UserError(f"label map {path} {reason}: rename or remove it")
        if own[0] in taken:
            raise UserError(f"{own[0]} has two label maps, {taken[own[0]]} and {path}: remove one")
        taken[own[0]] = path
        if split in ("", *SPLITS):
            pairs.setdefault(split or "train", []).append(Pair(own[0], path))
    without = sum(map(len, images.values())) - len(taken)
    if without:
        print(f"{without} images without a label map are left out")
    return {split: pairs[split] for split in SPLITS if split in pairs}


def _pixels(path: Path, mode: str | None = None) -> np.ndarray:
    """Of a label map, ``(H, W)`` or ``(H, W, 3 or 4)``, in this mode of Pillow's; None: its own."""
    if reason := why_not_decoded(path):
        raise UserError(f"label map {path} {reason}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"label map {path} cannot be read: {in_one_line(error)}") from error


def _values(path: Path) -> set[int] | None:
    """The values of a label map; None if it has colours."""
    indices = _indices(path)
    return None if indices is None else set(np.unique(indices).tolist())


def _indices(path: Path) -> np.ndarray | None:
    values = _pixels(path)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.ndim == 3:
        grey = values[..., :3]
        return grey[..., 0] if (grey == grey[..., :1]).all() else None
    return values


def _colour_table(folder: Path) -> dict[str, tuple[int, int, int]]:
    files = [path for name in _COLOUR_FILES for path in sorted(folder.rglob(name))]
    if len(files) > 1:
        raise UserError(f"{folder}: several colour tables: {listed(files)}: leave one")
    table: dict[str, tuple[int, int, int]] = {}
    for line in read_lines(files[0]) if files else ():
        found = next((m for pattern in _COLOUR_LINES if (m := pattern.match(line))), None)
        if found:
            red, green, blue = map(int, re.findall(r"\d+", found["colour"]))
            name, colour = found["name"].strip(), (red, green, blue)
            if name in table or colour in table.values():
                raise UserError(
                    f"{files[0]}: {name} or its colour {colour} is there twice: give each its own"
                )
            table[name] = colour
    if files and not table:
        raise UserError(
            f"{files[0]} has no line with a class and its colour, such as road:128,64,128"
        )
    return table


def _class_list(folder: Path, values: set[int]) -> list[str]:
    files = [path for name in ("classes.txt", "labels.txt") for path in sorted(folder.rglob(name))]
    if len(files) != 1:
        known = sorted(values - {IGNORED})
        raise UserError(
            f"{folder}: the classes of the values {listed(known, 12)} in its label maps are not known: name "
            "them in this order, from 0 on, by --classes a,b,..., or in a file classes.txt, one per line"
        )
    return read_lines(files[0])


def label_map_content(pair: Pair, data: SegmentationData) -> bytes:
    """A label map as a PNG of class indices ``(H, W)``.

    Raises:
        UserError: It has another size than its image, or a colour that is no class's.
    """
    if data.palette is not None:
        indices = _of_colours(pair.label_map, data.palette)
    else:
        indices = _indices(pair.label_map)
        if data.is_binary:
            indices = indices // 255
    size = seen_size(pair.image)
    if indices.shape != size[::-1]:
        raise UserError(
            f"label map {pair.label_map} has {indices.shape[1]} x {indices.shape[0]} pixels, its image "
            f"{size[0]} x {size[1]}, after EXIF turns it: export it for the image as it is seen"
        )
    file = io.BytesIO()
    Image.fromarray(indices.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _of_colours(path: Path, palette: Sequence[tuple[int, int, int]]) -> np.ndarray:
    colours = _pixels(path, "RGB").astype(np.int32) @ (65536, 256, 1)
    codes = np.array(palette) @ (65536, 256, 1)
    order = np.argsort(codes)
    at = np.searchsorted(codes[order], colours).clip(max=len(codes) - 1)
    indices = order[at]
    if (unknown := codes[indices] != colours).any():
        code = int(colours[unknown][0])
        colour = (code >> 16, code >> 8 & 255, code & 255)
        raise UserError(
            f"label map {path} has the colour {colour} at {int(unknown.sum())} pixels, no class's: add "
            "it to the colour table, or correct the map"
        )
    return indices


def dataset_changes(label_maps: str, names: str) -> dict[str, Any]:
    """The fields of a data set that reads them, beside ``data_root`` and ``metainfo``.

    Args:
        label_maps: folder of what :func:`label_map_content` gave, named as the images with ``.png`` after it.
        names: file of the images' names, relative to ``data_root``.
    """
    return {
        "_delete_": True,
        "type": "BaseSegDataset",
        "ann_file": names,
        "data_prefix": {"img_path": "", "seg_map_path": label_maps},
        "img_suffix": "",
        "seg_map_suffix": ".png",
        "reduce_zero_label": False,
    }
