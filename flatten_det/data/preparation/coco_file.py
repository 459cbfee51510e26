"""COCO annotation files of strangers: found in a folder, checked, completed, divided.

What they must have is in ``_OBJECT_NEEDS`` here, and in ``IMAGE_NEEDS`` and ``CATEGORY_NEEDS`` of
:mod:`~flatten_det.data.coco`; what they may leave out is filled in by :func:`completed`.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from ...errors import UserError, listed
from ...files.images import images_below, seen_size
from ...files.user_files import NotUtf8Error, files_below, text_with_mark, walk, why_not_read
from .. import coco
from ..coco import is_id, is_number, repeated, why_not_learned

SPLITS = ("train", "val")
# As parts of names: instances_train2017.json, valid/_annotations.coco.json, my-training-set.json.
_WORDS = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE),
    "val": re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE),
    "test": re.compile(r"(?<![a-z])test(ing)?(?![a-z])", re.IGNORECASE),
}


@dataclass(frozen=True)
class CocoFile:
    """A COCO annotation file.

    Attributes:
        path: where it is.
        content: its JSON object, with lists of dicts under ``images``, ``annotations`` and
            ``categories``.
        mended: what was changed in it already, in words.
        images: the folder that its file names are relative to, once it is known.
    """

    path: Path
    content: dict[str, Any]
    mended: tuple[str, ...] = ()
    images: Path | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Category names in the order of the file, which is the order of MMDetection's labels."""
        return tuple(category["name"] for category in self.content["categories"])

    @property
    def image_names(self) -> list[str]:
        """The ``file_name`` of each image."""
        return [image["file_name"] for image in self.content["images"]]

    def without_masks(self) -> int:
        """How many annotations have no segmentation."""
        return sum(not a.get("segmentation") for a in self.content["annotations"])


def read_json(path: Path) -> tuple[Any, bool]:
    """The content of a JSON file, and whether it begins with a mark, which the frameworks do not read."""
    if reason := why_not_read(path):
        raise UserError(f"annotation file {path} {reason}")
    try:
        text, has_mark = text_with_mark(path.read_bytes())
        return coco.parse_json(text), has_mark
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except NotUtf8Error as error:
        reason = f"is not valid JSON: it {error}"
    except coco.NotJsonError as error:
        reason = f"{error}: export it again"
    raise UserError(f"annotation file {path} {reason}")


def read_coco_file(path: Path, folder: Path | None = None) -> CocoFile:
    """Read an annotation file; UserError if it is no COCO file of objects, or contradicts itself.

    File names that lead to another machine's folders, as Label Studio writes them, are those of the images in
    ``folder`` that the ends of the names fit.
    """
    content, has_mark = read_json(path)
    mended = ["UTF-8 without a byte order mark"] if has_mark else []
    if not coco.is_coco(content):
        needed = ", ".join(coco.KEYS)
        raise UserError(f"{path} is no COCO file of objects: it needs lists of {needed}")
    if folder is not None and (found := _found_elsewhere(content["images"], folder)):
        mended.append(f"{len(found)} file names that led elsewhere")
        images = content["images"]
        images = [{**i, "file_name": found[n]} if (n := _name(i)) in found else i for i in images]
        content = {**content, "images": images}
    used = {
        annotation["category_id"]
        for annotation in content["annotations"]
        if isinstance(annotation, dict) and is_id(annotation.get("category_id"))
    }
    if roots := coco.root_categories(content["categories"], used):
        mended.append("the classes without their root (Roboflow's)")
        kept = [c for c in content["categories"] if c not in roots]
        content = {**content, "categories": kept}
    check_content(path, content)
    return CocoFile(path, content, tuple(mended))


def _name(image: Any) -> str:
    name = image.get("file_name") if isinstance(image, dict) else None
    return name if isinstance(name, str) else ""


def _parts(name: str) -> tuple[str, ...]:
    return PureWindowsPath(name).parts


def _found_elsewhere(images: list, folder: Path) -> dict[str, str]:
    """Where in the folder images are whose names lead out of it, by these; without those of which none is."""
    leaving = {name for name in map(_name, images) if name and not coco.stays_inside(name)}
    if not leaving:
        return {}
    by_name: dict[str, list[tuple[str, ...]]] = {}
    for path in images_below(folder):
        by_name.setdefault(path.name, []).append(path.relative_to(folder).parts)
    found = {}
    for name in leaving:
        # Label Studio's local files are the query of an address.
        address = name.rpartition("?d=")[2]
        for parts in map(_parts, (address, unquote(address))):
            places = by_name.get(parts[-1], []) if parts else []
            for count in range(2, len(parts) + 1):
                if len(places) > 1:
                    nearer = [place for place in places if place[-count:] == parts[-count:]]
                    places = nearer or places
            if len(places) == 1:
                found[name] = "/".join(places[0])
                break
    return found


def check_content(path: Path, content: dict[str, list]) -> None:
    """Refuse, by a UserError, what contradicts itself, or of which nothing can be learned."""
    images, annotations, categories = (content[key] for key in coco.KEYS)
    if not categories:
        raise UserError(f"{path}: its categories are empty: add the classes and their ids")
    _check_entries(path, "categories", categories, coco.CATEGORY_NEEDS)
    if again := sorted(repeated(category["name"] for category in categories)):
        raise UserError(f"{path}: categories share a name: {listed(again)}: rename or merge them")
    if not images:
        raise UserError(f"{path}: it names no images: export it again")
    _check_entries(path, "images", images, coco.IMAGE_NEEDS)
    leaving = [i["file_name"] for i in images if not coco.stays_inside(i["file_name"])]
    if leaving:
        raise UserError(
            f"{path}: {len(leaving)} file names leave the image folder: {listed(leaving)}: make them "
            "relative to it, without '..'"
        )
    _check_entries(path, "images", images, [_SIZE_NEED])
    if not annotations:
        raise UserError(f"{path}: it has no annotations: there is nothing to learn or to measure")
    owners = [_owner_need("image_id", "images", images)]
    owners.append(_owner_need("category_id", "categories", categories))
    _check_entries(path, "annotations", annotations, [*coco.ID_NEEDS, *owners, *_OBJECT_NEEDS])
    if all(map(why_not_learned, annotations)):
        crowds = sum(bool(annotation.get("iscrowd")) for annotation in annotations)
        raise UserError(
            f"{path}: of its {len(annotations)} annotations, {crowds} are crowds (iscrowd 1), and the others "
            "have no area, or are to be ignored: there is nothing to learn or to measure: export it again"
        )


# Beside what every COCO file needs: what must be right if it is there, or cannot be filled in.
_SIZE_NEED = (
    "a width or height that is no size in pixels",
    # Label Studio writes null for images that it could not open.
    lambda image: all(
        image.get(key) is None or coco.is_size(image[key]) for key in ("width", "height")
    ),
)
_OBJECT_NEEDS: coco.Needs = [
    ("no bbox of four numbers (x, y, width, height)", lambda a: coco.is_box(a.get("bbox"))),
    (
        "an area that is no number, or an iscrowd that is not 0 or 1",
        lambda a: is_number(a.get("area", 0)) and a.get("iscrowd", 0) in (0, 1),
    ),
]


def _owner_need(key: str, noun: str, owners: list[dict]) -> tuple[str, Callable[[dict], bool]]:
    ids = {owner["id"] for owner in owners}
    lack = f"no {key} that is in its {noun}"
    return lack, lambda entry: is_id(entry.get(key)) and entry[key] in ids


def _check_entries(path: Path, kind: str, items: list, needs: coco.Needs) -> None:
    """Refuse entries that lack something, and such that share an id."""
    for lack, is_met in needs:
        bad = [i for i, item in enumerate(items) if not (isinstance(item, dict) and is_met(item))]
        if bad:
            example = items[bad[0]]
            name = example.get("id", example) if isinstance(example, dict) else example
            raise UserError(
                f"{path}: {len(bad)} of {len(items)} {kind} have {lack}, such as number {bad[0] + 1} in the "
                f"file (id {name!r}): correct the file"
            )
    if again := repeated(item["id"] for item in items):
        raise UserError(f"{path}: {kind} share an id: {listed(again)}: give each its own")


def with_slashes(file: CocoFile) -> CocoFile:
    """The file with ``/`` for the backslashes in file names, which are Windows'."""
    images = [{**i, "file_name": i["file_name"].replace("\\", "/")} for i in file.content["images"]]
    mended = (*file.mended, "/ for \\ in file names")
    return CocoFile(file.path, {**file.content, "images": images}, mended)


def completed(file: CocoFile, images: Path) -> tuple[dict[str, Any], list[str]]:
    """Fill in what MMDetection and pycocotools need and exporters leave out.

    Returns the content, a new object where something was added, and the names of what was added. UserError
    if an image whose size is asked for cannot be read, or a mask has another size.
    """
    added = set(file.mended)

    def image(item: dict) -> dict:
        if item.get("width") is not None and item.get("height") is not None:
            return item
        added.add("width and height of images")
        width, height = seen_size(images / item["file_name"])
        return {**item, "width": width, "height": height}

    def annotation(item: dict) -> dict:
        if "area" not in item:
            added.add("area (that of the box)")
            item = {**item, "area": item["bbox"][2] * item["bbox"][3]}
        if "iscrowd" not in item:
            added.add("iscrowd (0)")
            item = {**item, "iscrowd": 0}
        return item

    content = {
        **file.content,
        "images": [image(item) for item in file.content["images"]],
        "annotations": [annotation(item) for item in file.content["annotations"]],
    }
    _check_masks(file.path, content)
    for noun, key in (("image", "images"), ("category", "categories")):
        ids = [item["id"] for item in content[key]]
        if len(set(map(type, ids))) > 1:  # pycocotools sorts them.
            added.add(f"{noun} ids from 1 on")
            new = {id_: i for i, id_ in enumerate(ids, start=1)}
            owner = f"{noun}_id"
            content[key] = [{**item, "id": new[item["id"]]} for item in content[key]]
            content["annotations"] = [{**a, owner: new[a[owner]]} for a in content["annotations"]]
    if not all(coco.can_be_matched(item["id"]) for item in content["annotations"]):
        added.add("annotation ids from 1 on")
        content["annotations"] = [
            {**item, "id": i} for i, item in enumerate(content["annotations"], start=1)
        ]
    return content, sorted(added)


def _check_masks(path: Path, content: dict[str, Any]) -> None:
    """Run lengths state the size of their image, which EXIF may turn."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    bad = [
        annotation
        for annotation in content["annotations"]
        if isinstance(annotation.get("segmentation"), dict)
        and annotation["segmentation"].get("size") != sizes[annotation["image_id"]]
    ]
    if bad:
        raise UserError(
            f"{path}: {len(bad)} masks have another size than their image, such as that of annotation "
            f"{bad[0]['id']!r}, not {sizes[bad[0]['image_id']]} (height, width, after EXIF turns the image): "
            "export them for the images as they are seen"
        )


def find_annotation_files(
    folder: Path, known: dict[str, Path], made: Collection[Path] = ()
) -> dict[str, Path]:
    """Find COCO files and tell by their names, or else their folders', which split they belong to.

    Returns ``'train'``, and ``'val'`` if there is one, with those that are ``known``. A single file of no
    split is ``'train'``. Files of ours, ``made`` earlier, do not count. UserError if there is none to train
    on, or more than one for a split.
    """
    taken = {path.resolve() for path in [*known.values(), *made]}
    by_split: dict[str, list[Path]] = {}
    candidates, broken = [], []
    for path in files_below(folder, ".json"):
        if path.resolve() in taken:
            continue
        try:
            is_meant = coco.is_coco(read_json(path)[0])
        except UserError as error:
            broken.append(str(error))
            # Named like annotations, it is rather reported as broken than passed over.
            is_meant = any(word.search(path.stem) for word in _WORDS.values())
        if is_meant:
            candidates.append(path)
            by_split.setdefault(split_of(path.relative_to(folder)), []).append(path)
    if unnamed := by_split.pop("", []):
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


def split_of(path: Path) -> str:
    names = (path.stem, *reversed(path.parent.parts))
    found = (split for name in names for split, word in _WORDS.items() if word.search(name))
    return next(found, "")


def split_of_folder(place: Path, root: Path) -> str:
    """The split that a folder, or one above it up to ``root``, is named like; nothing if none is."""
    return split_of(place.relative_to(root) / "x")


def find_image_folder(folder: Path, file: CocoFile, split: str) -> Path:
    """The folder that an annotation file's image names are relative to; UserError if none has them all."""
    names = file.image_names
    places = _folders_with(folder, names[0])
    for name in names[1:]:
        if len(places) < 2:
            break
        places = [place for place in places if (place / name).is_file()] or places
    if len(places) > 1:
        # Copies of the images, or equal names in the splits' folders: the one that is named alike.
        alike = [p for p in places if split_of_folder(p, folder) == split]
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
    return check_images(places[0], file, split)


def _folders_with(folder: Path, name: str) -> list[Path]:
    return sorted(Path(place) for place, *_ in walk(folder) if Path(place, name).is_file())


def check_images(images: Path, file: CocoFile, split: str) -> Path:
    """The folder itself, with all images of a file; UserError if some are not there."""
    names = file.image_names
    missing = [name for name in names if not (images / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {len(names)} images that {file.path} names are not in {images}: "
            f"{listed(missing)}: put them there, or name their folder by --{split}-images"
        )
    return images


class Division(NamedTuple):
    """How images are held back for validation.

    Attributes:
        val_fraction: the part of them, between 0 and 1.
        separator: what ends the part of a name, without its suffix, that images of one group share; each
            group stays whole. None: each image is its own group.
    """

    val_fraction: float
    separator: re.Pattern[str] | None = None

    def group(self, name: str) -> str:
        """The group of an image of this name, a path with ``/``."""
        folder, slash, file = name.rpartition("/")
        stem = os.path.splitext(file)[0]
        found = self.separator and self.separator.search(stem)
        return folder + slash + stem[: found.start()] if found else name


def divide_by_name(items: list, division: Division, name: Callable[[Any], str]) -> list[list]:
    """Those for training and those for validation, by a hash of their names, or of those of their groups.

    UserError if there is one group only.
    """
    groups: dict[str, list] = {}
    for item in items:
        groups.setdefault(division.group(name(item)), []).append(item)
    if division.separator and len(groups) in (1, len(items)):
        what = "all are of one group" if len(groups) == 1 else "no two share one"
        raise UserError(
            f"--group-by-prefix {division.separator.pattern}: of {len(items)} images, such as "
            f"{name(items[0])}, {what}: give what stands behind the common part of their names"
        )
    hashed = sorted(groups, key=lambda key: hashlib.sha256(key.encode("utf-8", "replace")).digest())
    wanted = max(len(items) * division.val_fraction, 1)
    held, count = set(), 0
    for group in hashed:
        own = len(groups[group])
        # Nearer to what is wanted with it than without it.
        if abs(count + own - wanted) < abs(count - wanted) and len(held) < len(groups) - 1:
            held.add(group)
            count += own
    if not held:  # All groups are larger than what is wanted.
        held.add(min(groups, key=lambda key: len(groups[key])))
    train, val = (
        [item for key in hashed if (key in held) == is_val for item in groups[key]]
        for is_val in (False, True)
    )
    if division.separator:
        print(
            f"{len(groups)} groups of images: {len(groups) - len(held)} ({len(train)} images) for training, "
            f"{len(held)} ({len(val)} images) for validation"
        )
    return [train, val]


def divide(file: CocoFile, division: Division) -> list[dict[str, Any]]:
    """Divide the images of a file, and their annotations, into those for training and for validation.

    By a hash of the images' names: always alike, and few move when images are added. UserError if a part
    would have no objects that count.
    """
    images, parts = file.content["images"], []
    for part in divide_by_name(images, division, lambda image: image["file_name"]):
        ids = {image["id"] for image in part}
        annotations = [a for a in file.content["annotations"] if a["image_id"] in ids]
        if all(map(why_not_learned, annotations)):
            raise UserError(
                f"{file.path}: {len(images)} images cannot be divided at --val-fraction "
                f"{division.val_fraction} so that both parts have objects: change it, or name validation "
                "annotations by --val-ann"
            )
        kept = [image for image in file.content["images"] if image["id"] in ids]
        parts.append({**file.content, "images": kept, "annotations": annotations})
    return parts
