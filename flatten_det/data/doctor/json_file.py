"""Reading a COCO file, of objects or of panoptic segments, of which nothing is known yet."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..coco_values import is_id, is_of_windows, is_size, parse_json, stays_inside
from ...files.user_files import NotUtf8Error, why_not_read
from .data_sets import DataSet
from .findings import Finding, quoted
from .kinds import (
    ANNOTATION_FILE,
    FILE_NAME_BACKSLASHES,
    FILE_NAME_LEAVES,
    MALFORMED_ENTRY,
    NO_IMAGES,
    NOT_CHECKED,
)

_KEYS = ("images", "annotations", "categories")


@dataclass
class CocoContent:
    """The entries of a COCO file that are what the format asks for; the others have been reported.

    Attributes:
        images: with an ``id`` and a ``file_name``, which may leave the folder.
        annotations: dicts; each task has its own rules for them.
        categories: with an ``id`` and a ``name``.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


def read_content(data_set: DataSet) -> tuple[CocoContent | None, list[Finding]]:
    """Read a data set's annotation file.

    Returns:
        Its content, None if it cannot be used, and what is wrong with single entries.
    """
    path = data_set.annotation_file
    if (reason := why_not_read(path)) is not None:
        reason = f"annotation file {path} {reason.removeprefix('was ')}"
        return None, [data_set.finding(ANNOTATION_FILE, reason)]
    try:
        content = _parsed(path)
    except OSError as error:
        reason = f"annotation file {path} cannot be read ({error.strerror})"
        return None, [data_set.finding(ANNOTATION_FILE, reason)]
    except NotUtf8Error as error:
        return None, [data_set.finding(ANNOTATION_FILE, f"annotation file {path} {error}")]
    except (ValueError, RecursionError) as error:
        reason = f"annotation file {path} is not valid JSON ({quoted(error)})"
        return None, [data_set.finding(ANNOTATION_FILE, reason)]
    lists = [content.get(key) for key in _KEYS] if isinstance(content, dict) else [None]
    if not all(isinstance(entries, list) for entries in lists):
        reason = f"annotation file {path} is no COCO file: it needs lists of {', '.join(_KEYS)}"
        return None, [data_set.finding(ANNOTATION_FILE, reason)]
    images, annotations, categories = lists
    findings: list[Finding] = []
    checked = CocoContent(
        _well_formed(data_set, "image", images, _image_fault, findings),
        _well_formed(data_set, "annotation", annotations, lambda entry: None, findings),
        _well_formed(data_set, "category", categories, _category_fault, findings),
    )
    findings += _image_findings(data_set, checked.images)
    return checked, findings


def _parsed(path: str) -> Any:
    content = Path(path).read_bytes()
    with _no_garbage_collection():
        return parse_json(content)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Millions of new objects set it off again and again, and none of them is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _well_formed(data_set, noun, entries, fault, findings: list[Finding]) -> list[dict]:
    """The entries without a fault; the others are added to ``findings``."""
    good = []
    for number, entry in enumerate(entries, start=1):
        reason = fault(entry) if type(entry) is dict else "is no JSON object"
        if reason is None:
            good.append(entry)
            continue
        id_ = entry.get("id") if type(entry) is dict else None
        name = f"{noun} {quoted(id_)}" if is_id(id_) else f"{noun} number {number} of the file"
        findings.append(
            data_set.finding(MALFORMED_ENTRY, f"{name} {reason}", id_ if is_id(id_) else None)
        )
    return good


def _image_fault(image: dict) -> str | None:
    if not is_id(image.get("id")):
        return "has no id that is a whole number or a text"
    name = image.get("file_name")
    return None if isinstance(name, str) and name else "has no file_name"


def _category_fault(category: dict) -> str | None:
    if not is_id(category.get("id")):
        return "has no id that is a whole number or a text"
    name = category.get("name")
    return None if isinstance(name, str) and name.strip() else "has no name"


def _image_findings(data_set: DataSet, images: list[dict]) -> Iterator[Finding]:
    if not images:
        yield data_set.finding(NO_IMAGES, "the file lists no images that can be used")
    for image in images:
        if not (is_size(image.get("width")) and is_size(image.get("height"))):
            yield data_set.finding(
                MALFORMED_ENTRY,
                f"{image_name(image)} has no width and height in pixels",
                image["id"],
            )
        if not stays_inside(image["file_name"]):
            yield data_set.finding(
                FILE_NAME_LEAVES, f"{image_name(image)} leaves the image folder", image["id"]
            )
        elif is_of_windows(image["file_name"], data_set.images):
            what = f"{image_name(image)} is written with backslashes, which are no / here"
            yield data_set.finding(FILE_NAME_BACKSLASHES, what, image["id"])


def image_name(image: dict) -> str:
    """An image as a message names it."""
    return f"image {quoted(image['id'])} ({quoted(image['file_name'])})"


def not_checked(data_set: DataSet) -> Finding:
    """That a data set is of a kind that is not known here."""
    return data_set.finding(
        NOT_CHECKED,
        f"{data_set.type} was not checked: neither COCO's format nor MMSegmentation's, on disk",
    )
