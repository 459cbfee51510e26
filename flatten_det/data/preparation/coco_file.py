"""COCO annotation files of strangers: read, checked before a training stumbles over them, completed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files.images import seen_size
from ...files.user_files import NotUtf8Error, text_with_mark, why_not_read
from ..coco_values import (
    are_of_one_type,
    can_be_matched,
    is_id,
    is_number,
    is_size,
    root_categories,
    stays_inside,
)
from .text import listed

KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoFile:
    """A COCO annotation file.

    Attributes:
        path: where it is.
        content: its JSON object, with lists of dicts under ``images``, ``annotations`` and
            ``categories``.
        mended: what was changed in it already, in words.
    """

    path: Path
    content: dict[str, Any]
    mended: tuple[str, ...] = ()

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


def is_coco(content: Any) -> bool:
    """Whether this is what a COCO file of objects holds."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in KEYS)


def read_coco_file(path: Path) -> CocoFile:
    """Read and check an annotation file.

    Raises:
        UserError: It cannot be read, is no COCO file of objects, or contradicts itself.
    """
    content, has_mark = read_json(path)
    mended = ["UTF-8 without a byte order mark"] if has_mark else []
    if not is_coco(content):
        raise UserError(f"{path} is no COCO file of objects: it needs lists of {', '.join(KEYS)}")
    used = {
        annotation["category_id"]
        for annotation in content["annotations"]
        if isinstance(annotation, dict) and is_id(annotation.get("category_id"))
    }
    if roots := root_categories(content["categories"], used):
        mended.append("the classes without their root (Roboflow's)")
        kept = [c for c in content["categories"] if c not in roots]
        content = {**content, "categories": kept}
    _check_categories(path, content["categories"])
    _check_images(path, content["images"])
    _check_annotations(path, content)
    return CocoFile(path, content, tuple(mended))


def read_json(path: Path) -> tuple[Any, bool]:
    """The content of a JSON file, and whether it begins with a mark, which the frameworks do not read.

    Raises:
        UserError: It cannot be read, or is not JSON.
    """
    if reason := why_not_read(path):
        raise UserError(f"annotation file {path} {reason}")
    try:
        text, has_mark = text_with_mark(path.read_bytes())
        return json.loads(text), has_mark
    except OSError as error:
        raise UserError(f"annotation file {path} cannot be read: {error.strerror}") from error
    except NotUtf8Error as error:
        raise UserError(f"annotation file {path} is not valid JSON: it {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"annotation file {path} is not valid JSON ({error}): export it again"
        ) from error


def with_slashes(file: CocoFile) -> CocoFile:
    """The file with ``/`` for the backslashes in file names, which are Windows'."""
    images = [
        {**image, "file_name": image["file_name"].replace("\\", "/")}
        for image in file.content["images"]
    ]
    return CocoFile(
        file.path, {**file.content, "images": images}, (*file.mended, "/ for \\ in file names")
    )


def _check(path: Path, kind: str, items: list, is_good: Callable[[dict], bool], need: str) -> None:
    bad = [i for i, item in enumerate(items) if not (isinstance(item, dict) and is_good(item))]
    if bad:
        example = items[bad[0]]
        name = example.get("id", example) if isinstance(example, dict) else example
        raise UserError(
            f"{path}: {len(bad)} of {len(items)} {kind} {need}, such as number {bad[0] + 1} in the file "
            f"(id {name!r}): correct the file"
        )


def _check_ids(path: Path, kind: str, items: list[dict]) -> None:
    _check(
        path,
        kind,
        items,
        lambda item: is_id(item.get("id")),
        "have no id that is a whole number or a text",
    )
    seen: set = set()
    again = [i["id"] for i in items if i["id"] in seen or seen.add(i["id"])]
    if again:
        raise UserError(f"{path}: {kind} share an id: {listed(again)}: give each its own")


def _check_categories(path: Path, categories: list) -> None:
    if not categories:
        raise UserError(f"{path}: its categories are empty: add the classes and their ids")
    _check(
        path,
        "categories",
        categories,
        lambda c: isinstance(c.get("name"), str) and bool(c["name"].strip()),
        "have no name",
    )
    _check_ids(path, "categories", categories)
    names = [category["name"] for category in categories]
    again = sorted({name for name in names if names.count(name) > 1})
    if again:
        raise UserError(f"{path}: categories share a name: {listed(again)}: rename or merge them")


def _check_images(path: Path, images: list) -> None:
    if not images:
        raise UserError(f"{path}: it names no images: export it again")
    _check(
        path,
        "images",
        images,
        lambda i: isinstance(i.get("file_name"), str) and bool(i["file_name"]),
        "have no file_name",
    )
    _check_ids(path, "images", images)
    leaving = [i["file_name"] for i in images if not stays_inside(i["file_name"])]
    if leaving:
        raise UserError(
            f"{path}: {len(leaving)} file names leave the image folder: {listed(leaving)}: make them "
            "relative to it, without '..'"
        )
    _check(
        path,
        "images",
        images,
        lambda i: all(is_size(i[key]) for key in ("width", "height") if key in i),
        "have a width or height that is no size in pixels",
    )


def _check_annotations(path: Path, content: dict[str, list]) -> None:
    annotations = content["annotations"]
    if not annotations:
        raise UserError(f"{path}: it has no annotations: there is nothing to learn or to measure")
    _check_ids(path, "annotations", annotations)
    for key, owners in (("image_id", "images"), ("category_id", "categories")):
        ids = {item["id"] for item in content[owners]}
        _check(
            path,
            "annotations",
            annotations,
            lambda a, key=key, ids=ids: is_id(a.get(key)) and a[key] in ids,
            f"have no {key} that is in its {owners}",
        )
    _check(
        path,
        "annotations",
        annotations,
        lambda a: (
            isinstance(a.get("bbox"), list)
            and len(a["bbox"]) == 4
            and all(map(is_number, a["bbox"]))
        ),
        "have no bbox of four numbers (x, y, width, height)",
    )
    _check(
        path,
        "annotations",
        annotations,
        lambda a: is_number(a.get("area", 0)) and a.get("iscrowd", 0) in (0, 1),
        "have an area that is no number, or an iscrowd that is not 0 or 1",
    )
    if not any(map(counts, annotations)):
        crowds = sum(bool(annotation.get("iscrowd")) for annotation in annotations)
        raise UserError(
            f"{path}: of its {len(annotations)} annotations, {crowds} are crowds (iscrowd 1), and the others "
            "have no area, or are to be ignored: there is nothing to learn or to measure: export it again"
        )


def counts(annotation: dict) -> bool:
    """Whether MMDetection learns from a checked annotation: not from crowds, or boxes without area."""
    is_left_out = annotation.get("iscrowd") or annotation.get("ignore")
    return not is_left_out and min(annotation["bbox"][2:]) >= 1 and annotation.get("area", 1) > 0


def completed(file: CocoFile, images: Path) -> tuple[dict[str, Any], list[str]]:
    """Fill in what MMDetection and pycocotools need and exporters leave out.

    Args:
        file: a checked annotation file.
        images: the folder that its file names are relative to.

    Returns:
        The content, a new object where something was added, and the names of what was added; empty
        if the file is good as it is.

    Raises:
        UserError: An image whose size is asked for cannot be read, or a mask has another size.
    """
    added = set(file.mended)

    def image(item: dict) -> dict:
        if "width" in item and "height" in item:
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
    for noun in ("image", "category"):
        _renumber_mixed(content, noun, added)
    if not all(can_be_matched(item["id"]) for item in content["annotations"]):
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


def _renumber_mixed(content: dict[str, Any], noun: str, added: set[str]) -> None:
    key = {"image": "images", "category": "categories"}[noun]
    ids = [item["id"] for item in content[key]]
    if are_of_one_type(ids):
        return
    added.add(f"{noun} ids from 1 on")
    new_ids = {id_: i for i, id_ in enumerate(ids, start=1)}
    content[key] = [{**item, "id": new_ids[item["id"]]} for item in content[key]]
    content["annotations"] = [
        {**item, f"{noun}_id": new_ids[item[f"{noun}_id"]]} for item in content["annotations"]
    ]
