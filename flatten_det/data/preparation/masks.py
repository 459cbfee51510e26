"""Images with label maps of one's own, for semantic segmentation: indices, 0 and 255, or colours.

Label maps are found beside the images or in a folder of their own, by the images' names, and written anew as
the frameworks read them: one channel of class indices, 255 where nothing counts.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ...errors import UserError, in_one_line, listed
from ...files.atomic import write_atomically
from ...files.images import FORMATS, images_below, seen_size, why_not_decoded
from ...files.user_files import files_below, read_lines
from ...results.picture import encoded
from ..coco import in_threads
from .coco_file import SPLITS, split_of_folder
from .image_size import Sizes

IGNORED = 255
BINARY = ("background", "foreground")
# Label maps at most in which regions are measured, and regions of each.
_MEASURED, _REGIONS = 50, 100
# Parts of the names of folders with label maps, and ends of the names of such files.
_FOLDER = re.compile(
    r"(?<![a-z])(masks?|labels?|labelmaps?|annotations?|gt|ground_?truth|seg\w*|semantic\w*)",
    re.IGNORECASE,
)
_PANOPTIC = re.compile(r"(?<![a-z])panoptic", re.IGNORECASE)  # Neither images nor label maps.
_END = re.compile(r"[_-](masks?|labels?|gt|seg|segmentation)$", re.IGNORECASE)
# What says which colour is which class: CVAT's labelmap.txt, class_dict.csv, and CamVid's label_colors.txt.
_COLOUR_LINES = (
    re.compile(r"^(?P<name>[^:#]+):(?P<colour>\d+,\d+,\d+)(:|$)"),
    re.compile(r"^(?P<name>[^,#]+),\s*(?P<colour>\d+\s*,\s*\d+\s*,\s*\d+)\s*$"),
    re.compile(r"^(?P<colour>\d+\s+\d+\s+\d+)\s+(?P<name>\S.*)$"),
)
# task-1-annotation-2-by-1-tag-car-0.png
_BRUSH = re.compile(r"task-\d+-annotation-\d+-by-.*\.png", re.IGNORECASE)
_COLOUR_FILES = ("labelmap.txt", "class_dict.csv", "label_colors.txt")


class NoLabelMapsError(UserError):
    """A folder has no images with label maps."""


class Pair(NamedTuple):
    """An image and its label map."""

    image: Path
    label_map: Path


class SegmentationData(NamedTuple):
    """What a folder's label maps say.

    Attributes:
        classes: names in the order of the indices.
        palette: a colour (R, G, B) of each class, if the folder says so.
        regions: how large the regions of one class are, in some of the images for training.
    """

    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]] | None
    regions: Sizes


class _LabelMap(NamedTuple):
    """A label map that was written: where, which values the source has, and its regions."""

    path: Path
    values: set[int]
    is_halved: bool  # 0 and 1 were written for 0 and 255
    regions: Sizes | None


def write_label_maps(
    folder: Path,
    pairs: dict[str, list[Pair]],
    places: dict[str, Path],
    classes: Sequence[str] | None = None,
) -> SegmentationData:
    """Write the label maps as PNGs of class indices ``(H, W)``, named as the images, with ``.png`` after it.

    Each is read once, written, and forgotten.

    Args:
        folder: of the data.
        pairs: of :func:`find_pairs`, by split.
        places: folders to write to, by split.
        classes: names in the order of the indices; None: those of the colour table, classes.txt or
            labels.txt, or ``background, foreground`` for label maps of 0 and 255.

    Raises:
        UserError: A label map cannot be read or written, has another size than its image, or a value or
            colour that is no class's, or the classes are not known.
    """
    table = _colour_table(folder)
    if table and classes and set(classes) != set(table):
        raise UserError(
            f"--classes are others than those of the colour table in {folder}: {listed(table)}"
        )
    names = tuple(classes or table)
    if len(names) > IGNORED:
        raise UserError(f"{folder}: {len(names)} classes: label maps have room for {IGNORED}")
    palette = [table[name] for name in names] if table else None
    may_be_binary = not table and len(classes or BINARY) == len(BINARY)
    every = []
    for split, own in pairs.items():
        stride = -(-len(own) // _MEASURED) if split == "train" else 0

        def write(
            item: tuple[int, Pair], place: Path = places[split], stride: int = stride
        ) -> _LabelMap:
            number, pair = item
            path = place / f"{pair.image.relative_to(folder).as_posix()}.png"
            indices = _checked_indices(pair, folder, palette)
            values = set(np.unique(indices).tolist())
            is_halved = may_be_binary and values <= {0, 255}
            written = indices // 255 if is_halved else indices
            write_atomically(path, encoded(Image.fromarray(written)), durable=False)
            is_measured = stride and number % stride == 0
            return _LabelMap(path, values, is_halved, _regions(written) if is_measured else None)

        every += in_threads(write, list(enumerate(own)), f"Label maps, {split}")
    regions = [label_map.regions for label_map in every if label_map.regions]
    sizes = Sizes(*(np.concatenate(parts) for parts in zip(*regions, strict=True)))
    if table:
        return SegmentationData(names, palette, sizes)
    values = set().union(*(label_map.values for label_map in every))
    is_binary = may_be_binary and values <= {0, 255} and 255 in values
    if is_binary:
        return SegmentationData(tuple(classes or BINARY), None, sizes)
    names = names or tuple(_class_list(folder, values))
    if beyond := sorted(values - set(range(len(names))) - {IGNORED}):
        raise UserError(
            f"{folder}: label maps have the values {listed(beyond)}, and there are {len(names)} classes, "
            "from 0 on: name all by --classes"
        )
    for label_map in every:
        if label_map.is_halved and 255 in label_map.values:
            whole = encoded(Image.fromarray(_pixels(label_map.path) * 255))
            write_atomically(label_map.path, whole, durable=False)
    return SegmentationData(names, None, sizes)


def is_label_map(path: Path, folder: Path) -> bool:
    """Whether an image below a folder is named, or lies, as label maps do."""
    place = path.relative_to(folder).parent
    return bool(_FOLDER.search(place.as_posix()) or _END.search(path.stem))


def has_label_maps(folder: Path) -> bool:
    """Whether a folder holds what looks like label maps; UserError for those that say no image's name."""
    images = images_below(folder)
    _refuse_brush_masks(images)
    return any(is_label_map(path, folder) for path in images)


def _refuse_brush_masks(images: list[Path]) -> None:
    if brush := [path for path in images if _BRUSH.match(path.name)]:
        raise UserError(
            f"{brush[0]}: Label Studio's brush PNGs do not say whose image they are: export the project as "
            "Brush labels to COCO, for a config of instances"
        )


def find_pairs(folder: Path, made: Collection[Path] = ()) -> dict[str, list[Pair]]:
    """The images and label maps of a folder by split; prints what is left out.

    Args:
        folder: of the data.
        made: folders in it with label maps of ours, which do not count.

    Raises:
        UserError: There are no label maps, or one has no image or several.
    """
    label_maps, images = [], {}
    paths = images_below(folder)
    _refuse_brush_masks(paths)
    for path in paths:
        if any(path.is_relative_to(place) for place in made):
            continue
        if _PANOPTIC.search(path.relative_to(folder).parent.as_posix()):
            continue
        if is_label_map(path, folder):
            label_maps.append(path)
        else:
            images.setdefault(path.stem, []).append(path)
    if not label_maps or not images:
        raise NoLabelMapsError(
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
            several = f"belongs to several images ({listed(own)})"
            reason = several if own else "has no image of its name"
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
    """Of a label map, ``(H, W)`` or ``(H, W, 2 to 4)``, in this mode of Pillow's; None: its own."""
    if reason := why_not_decoded(path):
        raise UserError(f"label map {reason.removeprefix('image ')}")
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.format == "JPEG":
                raise UserError(f"label map {path} is a JPEG, which mixes values: export PNG")
            return np.asarray(image.convert(mode) if mode else image)
    except UserError:
        raise
    except Exception as error:  # Decoders of damaged content raise anything.
        raise UserError(f"label map {path} cannot be read: {in_one_line(error)}") from error


def _indices(path: Path) -> np.ndarray | None:
    values = _pixels(path)
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.ndim == 3:
        grey = values[..., :1] if values.shape[2] == 2 else values[..., :3]  # after it, alpha
        return grey[..., 0] if (grey == grey[..., :1]).all() else None
    return values


def _colour_table(folder: Path) -> dict[str, tuple[int, int, int]]:
    files = [path for path in files_below(folder, ".txt", ".csv") if path.name in _COLOUR_FILES]
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
    listing = files_below(folder, ".txt")
    files = [path for path in listing if path.name in ("classes.txt", "labels.txt")]
    if len(files) != 1:
        known = sorted(values - {IGNORED})
        raise UserError(
            f"{folder}: the classes of the values {listed(known, 12)} in its label maps are not known: name "
            "them in this order, from 0 on, by --classes a,b,..., or in a file classes.txt, one per line"
        )
    return read_lines(files[0])


def _checked_indices(
    pair: Pair, folder: Path, palette: Sequence[tuple[int, int, int]] | None
) -> np.ndarray:
    """The class indices of a label map, uint8 of ``(H, W)``; 255 may be the second of two classes."""
    path = pair.label_map
    indices = _indices(path) if palette is None else _of_colours(path, palette)
    if indices is None:
        raise UserError(
            f"{path} has colours; which class each means must be in one of {', '.join(_COLOUR_FILES)} in "
            f"{folder}, such as a line road:128,64,128"
        )
    if not np.issubdtype(indices.dtype, np.integer) or indices.min() < 0 or indices.max() > 255:
        raise UserError(
            f"label map {path} has values from {indices.min()} to {indices.max()}: indices of classes are "
            "whole numbers from 0 to 254, and 255 where nothing counts: export it so"
        )
    size = seen_size(pair.image)
    if indices.shape != size[::-1]:
        raise UserError(
            f"label map {path} has {indices.shape[1]} x {indices.shape[0]} pixels, its image "
            f"{size[0]} x {size[1]}, after EXIF turns it: export it for the image as it is seen"
        )
    return indices.astype(np.uint8)


def _regions(indices: np.ndarray) -> Sizes:
    """Of the connected regions of each class, some of them where they are many."""
    areas = []
    for value in set(np.unique(indices).tolist()) - {IGNORED}:
        statistics = cv2.connectedComponentsWithStats((indices == value).astype(np.uint8))[2]
        areas.append(statistics[1:, cv2.CC_STAT_AREA])  # after the rest of the image
    sides = np.sqrt(np.concatenate(areas)) if areas else np.array([max(indices.shape)], float)
    sides = np.sort(sides)[:: -(-len(sides) // _REGIONS)]  # Noise may have a million of them.
    return Sizes(np.tile(sorted(indices.shape)[::-1], (len(sides), 1)).astype(float), sides)


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
        label_maps: folder of what :func:`write_label_maps` wrote.
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
