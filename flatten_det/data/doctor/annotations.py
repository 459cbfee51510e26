"""What holds for every COCO file, of instances or of panoptic segments: entries, ids, categories, boxes."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files.user_files import why_not_read
from .. import coco
from ..coco import is_id, is_number, is_size, repeated
from . import faults
from .data_sets import ConfiguredDataSet
from .faults import FaultKind, Finding, Outcome, counted, quoted
from .images import image_findings, image_name

# Annotation tools round.
TOLERANCE_PX = 1.0


@dataclass
class CocoContent:
    """The entries of a COCO file that are what the format asks for; the others have been reported.

    Images have an ``id`` and a ``file_name``, which may leave the folder, categories an ``id`` and a
    ``name``. Annotations are dicts; each task has its own rules for them.
    """

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]


@dataclass
class Objects:
    """Objects of a data set, whose fields may still be anything.

    Attributes:
        noun: what one is called: ``'annotation'`` or ``'segment'``.
        entries: one dict per object.
        image_ids: of their images, one per object; None where it is no id.
    """

    noun: str
    entries: list[dict[str, Any]]
    image_ids: list[Any]

    def finding(self, data_set: ConfiguredDataSet, kind: FaultKind, row: int, what: str) -> Finding:
        """A fault of one object."""
        id_ = self.entries[row].get("id")
        of_image = quoted(self.image_ids[row])
        message = f"{self.noun} {quoted(id_)} of image {of_image} {what}"
        return data_set.finding(kind, message, id_ if is_id(id_) else None)

    def column(self, key: str) -> list[Any]:
        """What each object has under ``key``; None where it is no id."""
        return id_column(self.entries, key)


def id_column(entries: list[dict[str, Any]], key: str) -> list[Any]:
    """What each entry has under ``key``; None where it is no id."""
    values = [entry.get(key) for entry in entries]
    if set(map(type, values)) <= {int, str}:
        return values
    return [value if is_id(value) else None for value in values]


def read_content(data_set: ConfiguredDataSet) -> tuple[CocoContent | None, list[Finding]]:
    """A data set's annotation file, None if it cannot be used, and what is wrong with single entries."""
    path, content = data_set.annotation_file, None
    if (reason := why_not_read(path)) is not None:
        reason = reason.removeprefix("was ")
    else:
        try:
            content = coco.parse_json(Path(path).read_bytes())
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except ValueError as error:
            reason = str(error)
        else:
            if not coco.is_coco(content):
                reason = f"is no COCO file: it needs lists of {', '.join(coco.KEYS)}"
    if reason is not None:
        reason = f"annotation file {path} {reason}"
        return None, [data_set.finding(faults.ANNOTATION_FILE, reason)]
    findings: list[Finding] = []
    checked = CocoContent(
        _well_formed(data_set, "image", content["images"], coco.IMAGE_NEEDS, findings),
        _well_formed(data_set, "annotation", content["annotations"], (), findings),
        _well_formed(data_set, "category", content["categories"], coco.CATEGORY_NEEDS, findings),
    )
    findings += _image_entry_findings(data_set, checked.images)
    return checked, findings


def _well_formed(
    data_set: ConfiguredDataSet,
    noun: str,
    entries: list,
    needs: coco.Needs,
    findings: list[Finding],
) -> list[dict]:
    """The entries that have what they need; the others are added to ``findings``."""
    good = []
    for number, entry in enumerate(entries, start=1):
        is_object = type(entry) is dict
        lack = coco.lacking(entry, needs) if is_object else None
        if is_object and lack is None:
            good.append(entry)
            continue
        id_ = entry["id"] if is_object and is_id(entry.get("id")) else None
        name = f"{noun} number {number} of the file" if id_ is None else f"{noun} {quoted(id_)}"
        what = f"{name} has {lack}" if is_object else f"{name} is no JSON object"
        findings.append(data_set.finding(faults.MALFORMED_ENTRY, what, id_))
    return good


def _image_entry_findings(data_set: ConfiguredDataSet, images: list[dict]) -> Iterator[Finding]:
    if not images:
        yield data_set.finding(faults.NO_IMAGES, "the file lists no images that can be used")
    for image in images:
        found = []
        if not (is_size(image.get("width")) and is_size(image.get("height"))):
            found.append((faults.MALFORMED_ENTRY, "has no width and height in pixels"))
        if not coco.stays_inside(image["file_name"]):
            found.append((faults.FILE_NAME_LEAVES, "leaves the image folder"))
        elif coco.is_of_windows(image["file_name"], data_set.images):
            what = "is written with backslashes, which are no / here"
            found.append((faults.FILE_NAME_BACKSLASHES, what))
        for kind, what in found:
            yield data_set.finding(kind, f"{image_name(image)} {what}", image["id"])


def annotation_findings(
    data_set: ConfiguredDataSet,
    content: CocoContent,
    objects: Objects,
    needed: tuple[str, ...],
    of_task: Iterable[Finding],
) -> Iterator[Finding]:
    """What is wrong with an annotation file itself; no image is opened.

    Objects need the fields ``needed`` beside ids and boxes, without which the frameworks fail. What is
    wrong by the rules of instances, or of panoptic segments, is ``of_task``.
    """
    used = set(objects.column("category_id"))
    roots = coco.root_categories(content.categories, used)
    yield from data_set.missing_folders()
    yield from _duplicate_entries(data_set, content, roots)
    yield from of_task
    yield from _object_findings(data_set, content, objects, needed)
    yield from _category_findings(data_set, content, used, roots)


def _duplicate_entries(
    data_set: ConfiguredDataSet, content: CocoContent, roots: list[dict]
) -> Iterator[Finding]:
    """Images and categories that share an id or a name."""
    images = content.images
    categories = [category for category in content.categories if category not in roots]
    for root in roots:
        id_, name = quoted(root["id"]), quoted(root["name"])
        what = f"category {id_} ({name}), which has no object, is the root of a Roboflow export, and no class"
        yield data_set.finding(faults.ROOT_CATEGORY, what, root["id"])
    for entries, key, kind, what in (
        (images, "id", faults.DUPLICATE_IMAGE_ID, "image id"),
        (images, "file_name", faults.DUPLICATE_FILE_NAME, "file name"),
        (categories, "id", faults.DUPLICATE_CATEGORY, "category id"),
        (categories, "name", faults.DUPLICATE_CATEGORY, "category name"),
    ):
        for value, count in repeated(entry[key] for entry in entries).items():
            yield data_set.finding(kind, f"{what} {quoted(value)} occurs {count} times", value)


def classes_of(data_set: ConfiguredDataSet, content: CocoContent) -> dict[Hashable, dict]:
    """The file's categories, by id, that are classes of the config."""
    return {
        category["id"]: category
        for category in content.categories
        if not data_set.classes or category["name"] in data_set.classes
    }


def _category_findings(
    data_set: ConfiguredDataSet, content: CocoContent, used: set[Hashable], roots: list[dict]
) -> Iterator[Finding]:
    """Compare the file's categories with the config's classes and with what the objects use."""
    # A config without classes takes them as they come.
    of_file = [category["name"] for category in content.categories]
    classes = data_set.classes or tuple(of_file)
    for name in classes:
        if name not in of_file:
            what = f"class {quoted(name)} is not in the file"
            yield data_set.finding(faults.MISSING_CATEGORY, what, str(name))
    for category in content.categories:
        id_ = category["id"]
        what = f"category {quoted(id_)} ({quoted(category['name'])})"
        if category["name"] not in classes:
            what += " is no class of the config"
            yield data_set.finding(faults.IGNORED_CATEGORY, what, id_)
        elif id_ not in used and category not in roots:  # Roots have been reported.
            yield data_set.finding(faults.UNUSED_CATEGORY, f"{what} has no object", id_)
    of_config = [name for name in classes if name in of_file]
    of_file = [name for name in of_file if name in classes]
    if of_file != of_config and len(of_file) == len(of_config):
        label = next(i for i, name in enumerate(of_file) if name != of_config[i])
        yield data_set.finding(
            faults.CATEGORY_ORDER,
            f"of the {len(of_file)} classes, the first that differs is label {label}: "
            f"{quoted(of_file[label])} in the file, {quoted(of_config[label])} in the config",
        )


def _object_findings(
    data_set: ConfiguredDataSet, content: CocoContent, objects: Objects, needed: tuple[str, ...]
) -> Iterator[Finding]:
    """What is wrong with single objects: their fields, images, categories and boxes."""
    entries = objects.entries

    def found(kind: FaultKind, rows: Iterable[int], what: str) -> Iterator[Finding]:
        return (objects.finding(data_set, kind, row, what) for row in rows)

    rows = (row for row, id_ in enumerate(objects.column("id")) if id_ is None)
    yield from found(faults.MALFORMED_ENTRY, rows, f"has {coco.NO_ID}")
    for key in needed:
        values = [entry.get(key) for entry in entries]
        if not set(map(type, values)) <= {int}:
            rows = (row for row, value in enumerate(values) if not is_number(value))
            yield from found(faults.MALFORMED_ENTRY, rows, f"has no number as {key}")
    known = {category["id"] for category in content.categories}
    for row, id_ in enumerate(objects.column("category_id")):
        if id_ not in known:
            stored = quoted(entries[row].get("category_id"))
            what = f"has category {stored}, which is not listed"
            yield objects.finding(data_set, faults.UNKNOWN_CATEGORY, row, what)
    row_of_image = {image["id"]: row for row, image in enumerate(content.images)}
    image_rows = np.array([row_of_image.get(id_, -1) for id_ in objects.image_ids], np.int64)
    rows = np.flatnonzero(image_rows < 0).tolist()
    yield from found(faults.UNKNOWN_IMAGE, rows, "has an image that is not listed")
    # The last row is that of unknown images.
    sizes = np.full((len(content.images) + 1, 2), np.nan)
    for row, image in enumerate(content.images):
        size = image.get("width"), image.get("height")
        if all(map(is_size, size)) and max(size) < 2**31:
            sizes[row] = size
    sizes = sizes[image_rows]
    stored = [entry.get("bbox") for entry in entries]
    for kind, faulty in box_faults(box_array(stored), sizes):
        for row in faulty.tolist():
            size = "x".join(f"{side:.0f}" for side in sizes[row] if side == side)
            image = f", image {size}" if size else ""
            yield objects.finding(data_set, kind, row, f"has the box {quoted(stored[row])}{image}")


def box_array(values: list[Any]) -> np.ndarray:
    """Boxes as the annotations have them, float64 ``(N, 4)``; NaN for what is not four finite numbers."""
    none = [np.nan] * 4
    boxes = [value if coco.is_box(value) else none for value in values]
    return np.array(boxes, np.float64).reshape(-1, 4)


def box_faults(boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[FaultKind, np.ndarray]]:
    """What is wrong with which boxes, as a kind and rows ``(M,)``; at most one fault each.

    Args:
        boxes: ``(N, 4)`` as x, y, width and height in pixels; NaN where there is none.
        sizes: ``(N, 2)``, width and height of the images; NaN where they are not known.
    """
    start, extent = boxes[:, :2], boxes[:, 2:]
    # An infinity may come of adding two finite numbers; NaN, of unknown sizes, compares as False.
    with np.errstate(over="ignore", invalid="ignore"):
        end = start + extent
        over = (start < -TOLERANCE_PX).any(axis=1) | (end > sizes + TOLERANCE_PX).any(axis=1)
        tests = (
            (faults.BOX_INVALID, np.isnan(boxes[:, 0])),
            (faults.BOX_NEGATIVE, (extent < 0).any(axis=1)),
            (faults.BOX_EMPTY, (extent < 1).any(axis=1)),
            (faults.BOX_OUTSIDE, (start >= sizes).any(axis=1) | (end <= 0).any(axis=1)),
            (faults.BOX_CROSSES_BORDER, over),
        )
    faultless = np.ones(len(boxes), bool)
    for kind, is_true in tests:
        rows = np.flatnonzero(is_true & faultless)
        faultless[rows] = False
        if len(rows):
            yield kind, rows


def why_none_counts(objects: Objects, reason: Callable[[dict[str, Any]], str | None]) -> str | None:
    """Say why no object counts; None if one does, which mostly is found at once.

    ``reason`` says of one why it does not count, as of several ("are ..."); None if it does.
    """
    reasons: Counter[str] = Counter()
    for entry, image_id in zip(objects.entries, objects.image_ids, strict=True):
        why = reason({**entry, "image_id": image_id})
        if why is None:
            return None
        reasons[why] += 1
    if not reasons:
        return f"there is no {objects.noun} in the file"
    number = counted(len(objects.entries), objects.noun)
    if len(reasons) == 1:
        return f"all {number} {reasons.popitem()[0]}"
    return f"of {number}, {', '.join(f'{count} {why}' for why, count in reasons.most_common())}"


class CocoImages:
    """The images of a data set, each of which can be examined by itself."""

    def __init__(self, data_set: ConfiguredDataSet, content: CocoContent, objects: Objects):
        self.data_set, self.content, self.objects = data_set, content, objects
        self.rows: dict[Any, list[int]] = {}
        for row, image_id in enumerate(objects.image_ids):
            self.rows.setdefault(image_id, []).append(row)

    def __len__(self) -> int:
        return len(self.content.images)

    def __getitem__(self, index: int) -> Outcome:
        """Examine an image, and what belongs to it."""
        image = self.content.images[index]
        return Outcome([*image_findings(self.data_set, image), *self.others(image)])

    def others(self, image: dict) -> Iterator[Finding]:
        """What is wrong with the image's masks or its label map."""
        raise NotImplementedError
