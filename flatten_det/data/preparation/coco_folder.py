"""Finding the annotation files and the images in a folder that somebody else has laid out."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from ...errors import UserError
from .coco_file import CocoFile, is_coco, read_json
from .text import listed

SPLITS = ("train", "val")
# As parts of names: instances_train2017.json, valid/_annotations.coco.json, my-training-set.json.
_WORDS = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE),
    "val": re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE),
    "test": re.compile(r"(?<![a-z])test(ing)?(?![a-z])", re.IGNORECASE),
}


def find_annotation_files(folder: Path, known: dict[str, Path]) -> dict[str, Path]:
    """Find COCO files and tell by their names, or else their folders', which split they belong to.

    Args:
        folder: where to look.
        known: splits that need not be found, and their files.

    Returns:
        ``'train'``, and ``'val'`` if there is one. A single file of no split is ``'train'``.

    Raises:
        UserError: There is no file to train on, or more than one for a split.
    """
    taken = {path.resolve() for path in known.values()}
    candidates, broken = [], []
    for path in sorted(folder.rglob("*.json")):
        if path.resolve() in taken:
            continue
        try:
            is_meant = is_coco(read_json(path)[0])
        except UserError as error:
            broken.append(str(error))
            # Named like annotations, it is rather reported as broken than passed over.
            is_meant = any(word.search(path.stem) for word in _WORDS.values())
        if is_meant:
            candidates.append(path)
    by_split: dict[str, list[Path]] = {}
    for path in candidates:
        by_split.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    unnamed = by_split.pop("", [])
    if unnamed:
        by_split.setdefault("train", unnamed)
    found = dict(known)
    for split in SPLITS:
        # COCO's own folder has keypoints and more beside the instances.
        paths = by_split.get(split, [])
        paths = [path for path in paths if path.stem.startswith("instances")] or paths
        if len(paths) > 1 and split not in known:
            raise UserError(
                f"{folder}: {len(paths)} annotation files may be meant for {split} ({listed(paths)}): "
                f"say which by --{split}-ann"
            )
        if paths:
            found.setdefault(split, paths[0])
    if "train" not in found:
        seen = f"only {listed(candidates)}" if candidates else "no COCO file (*.json)"
        unread = f" (but {listed(broken)})" if broken else ""
        raise UserError(
            f"{folder}: no annotation file for training, {seen}{unread}: check the folder, or say which by "
            "--train-ann"
        )
    return found


def _split_of(path: Path) -> str:
    for name in (path.stem, *reversed(path.parent.parts)):
        for split, word in _WORDS.items():
            if word.search(name):
                return split
    return ""


def find_image_folder(folder: Path, file: CocoFile, split: str) -> Path:
    """The folder that an annotation file's image names are relative to.

    Raises:
        UserError: There is none with all images, or more than one.
    """
    names = file.image_names
    places = _folders_with(folder, names[0])
    for name in names[1:]:
        if len(places) < 2:
            break
        places = [place for place in places if (place / name).is_file()] or places
    if len(places) > 1:
        # Copies of the images, or equal names in the splits' folders: the one that is named alike.
        alike = [p for p in places if _split_of(p.relative_to(folder) / "x") == split]
        beside = [p for p in places if p == file.path.parent]
        places = alike if len(alike) == 1 else beside or places
    if len(places) > 1:
        raise UserError(
            f"{folder}: the images of {file.path.name} lie in {len(places)} folders ({listed(places)}): "
            f"say which by --{split}-images"
        )
    if not places:
        raise UserError(
            f"{folder}: image {names[0]}, which {file.path} names, is nowhere in it: put the images "
            f"there, or say where they are by --{split}-images"
        )
    check_images(places[0], file, split)
    return places[0]


def _folders_with(folder: Path, name: str) -> list[Path]:
    found, seen = [], set()
    for place, below, _ in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # A link back up.
            below.clear()
        elif Path(place, name).is_file():
            found.append(Path(place))
        seen.add(real)
    return sorted(found)


def check_images(images: Path, file: CocoFile, split: str) -> None:
    """Make sure that all images of a file are there.

    Raises:
        UserError: Some are not.
    """
    names = file.image_names
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} images that {file.path} names are not in {images}: "
            f"{listed(missing)}: put them there, or name their folder by --{split}-images"
        )


def relative_to(path: Path, folder: Path) -> str:
    """A path as a config writes it: relative to the data set's folder if it lies there."""
    if not path.is_relative_to(folder):
        return path.as_posix()
    return "" if path == folder else path.relative_to(folder).as_posix()


def existing(paths: Iterable[Path | None]) -> None:
    """Make sure that what the command line names exists.

    Raises:
        UserError: It does not.
    """
    for path in paths:
        if path is not None and not path.exists():
            raise UserError(f"{path} not found: check the path (here: {Path.cwd()})")
