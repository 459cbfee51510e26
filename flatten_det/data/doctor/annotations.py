"""What holds for every COCO file, of instances or of panoptic segments: entries, ids, categories, boxes."""

import contextlib
from collections import Counter
from collections.abc import Hashable, Iterator
from itertools import chain
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
_UNKNOWN_SIZE = (np.nan, np.nan)
# Entries of the file, by the names of their lists.
Content = dict[str, list[dict[str, Any]]]


def read_content(data_set: ConfiguredDataSet) -> tuple[Content | None, list[Finding]]:
    """The good entries of a data set's file, None if it cannot be used, and what is wrong with the others.

    Images have an ``id`` and a ``file_name``, which may leave the folder, categories an ``id`` and a
    ``name``. Annotations are dicts; each task has its own rules for them.
    """
    path = data_set.annotation_file
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
        what = f"annotation file {path} {reason}"
        return None, [data_set.finding(faults.ANNOTATION_FILE, what)]
    findings: list[Finding] = []
    good = {key: _good_entries(data_set, key, content[key], findings) for key in coco.KEYS}
    findings += _image_entry_findings(data_set, good["images"])
    return good, findings


_NEEDS = {
    "images": ("image", coco.IMAGE_NEEDS),
    "annotations": ("annotation", ()),
    "categories": ("category", coco.CATEGORY_NEEDS),
}


def _good_entries(
    data_set: ConfiguredDataSet, key: str, entries: list, findings: list[Finding]
) -> list[dict]:
    """The entries that have what they need; the others are added to ``findings``."""
    good, (noun, needs) = [], _NEEDS[key]
    for number, entry in enumerate(entries, start=1):
        if type(entry) is dict:
            lack = next((f"has {lack}" for lack, is_met in needs if not is_met(entry)), None)
            id_ = entry["id"] if is_id(entry.get("id")) else None
        else:
            lack, id_ = "is no JSON object", None
        if lack is None:
            good.append(entry)
            continue
        name = f"{noun} number {number} of the file" if id_ is None else f"{noun} {quoted(id_)}"
        findings.append(data_set.finding(faults.MALFORMED_ENTRY, f"{name} {lack}", id_))
    return good


def _image_entry_findings(data_set: ConfiguredDataSet, images: list[dict]) -> Iterator[Finding]:
    def finding(kind: FaultKind, image: dict, what: str) -> Finding:
        return data_set.finding(kind, f"{image_name(image)} {what}", image["id"])

    if not images:
        yield data_set.finding(faults.NO_IMAGES, "the file lists no images that can be used")
    for image in images:
        if not (is_size(image.get("width")) and is_size(image.get("height"))):
            yield finding(faults.MALFORMED_ENTRY, image, "has no width and height in pixels")
        if not coco.stays_inside(image["file_name"]):
            yield finding(faults.FILE_NAME_LEAVES, image, "leaves the image folder")
        elif coco.is_of_windows(image["file_name"], data_set.images):
            what = "is written with backslashes, which are no / here"
            yield finding(faults.FILE_NAME_BACKSLASHES, image, what)


class CocoCheck:
    """A COCO file of a data set, and the images that it lists, each of which can be examined by itself.

    Subclasses say what its objects are, and what holds for these, instances or panoptic segments:

    - ``noun``: what an object is called;
    - ``find_objects()``: the objects, and the ids of their images;
    - ``own_findings()``: what is wrong by the rules of the task;
    - ``other_findings(image)``: what is wrong with an image's masks or its label map;
    - ``why_not(entry, to_learn)``: why an object does not count, as of several ("are ..."), in a training, as
      MMDetection reads it (``to_learn``), or in an evaluation; None if it does.

    Attributes:
        images: by their ids.
        objects: one dict per object, whose fields may still be anything.
        image_ids: of their images, one per object; None where it is no id.
        rows: of the objects, by the id of their image.
        classes: the file's categories, by id, that are classes of the config.
    """

    noun: str

    def __init__(self, data_set: ConfiguredDataSet, content: Content):
        self.data_set, self.content = data_set, content
        self.images: dict[Hashable, dict] = {image["id"]: image for image in content["images"]}
        self.objects, self.image_ids = self.find_objects()
        self.rows: dict[Any, list[int]] = {}
        for row, image_id in enumerate(self.image_ids):
            self.rows.setdefault(image_id, []).append(row)
        self.classes: dict[Hashable, dict] = {
            category["id"]: category
            for category in content["categories"]
            if not data_set.classes or category["name"] in data_set.classes
        }

    def needed_fields(self) -> tuple[str, ...]:
        """Fields of objects, beside ids and boxes, without which the frameworks fail."""
        return ("area",)

    def findings(self) -> Iterator[Finding]:
        """What is wrong with the annotation file itself; no image is opened."""
        used = set(id_column(self.objects, "category_id"))
        roots = coco.root_categories(self.content["categories"], used)
        yield from self.data_set.missing_folders()
        yield from self._duplicate_entries(roots)
        yield from self.own_findings()
        yield from self._object_findings()
        yield from self._category_findings(used, roots)

    def object_finding(self, kind: FaultKind, row: int, what: str) -> Finding:
        """A fault of one object."""
        id_ = self.objects[row].get("id")
        message = f"{self.noun} {quoted(id_)} of image {quoted(self.image_ids[row])} {what}"
        return self.data_set.finding(kind, message, id_ if is_id(id_) else None)

    def why_none_counts(self, to_learn: bool) -> str | None:
        """Say why no object counts; None if one does, which mostly is found at once."""
        reasons: Counter[str] = Counter()
        for entry, image_id in zip(self.objects, self.image_ids, strict=True):
            why = self.why_not({**entry, "image_id": image_id}, to_learn)
            if why is None:
                return None
            reasons[why] += 1
        number = counted(len(self.objects), self.noun)
        if not reasons:
            return f"there is no {self.noun} in the file"
        if len(reasons) == 1:
            return f"all {number} {reasons.popitem()[0]}"
        return f"of {number}, {', '.join(f'{count} {why}' for why, count in reasons.most_common())}"

    def __len__(self) -> int:
        return len(self.content["images"])

    def __getitem__(self, index: int) -> Outcome:
        """Examine an image, and its masks or its label map."""
        image = self.content["images"][index]
        return Outcome([*image_findings(self.data_set, image), *self.other_findings(image)])

    def _duplicate_entries(self, roots: list[dict]) -> Iterator[Finding]:
        """Images and categories that share an id or a name."""
        images = self.content["images"]
        categories = [c for c in self.content["categories"] if c not in roots]
        for root in roots:
            what = f"category {quoted(root['id'])} ({quoted(root['name'])}), which has no object, "
            what += "is the root of a Roboflow export, and no class"
            yield self.data_set.finding(faults.ROOT_CATEGORY, what, root["id"])
        for entries, key, kind, noun in (
            (images, "id", faults.DUPLICATE_IMAGE_ID, "image id"),
            (images, "file_name", faults.DUPLICATE_FILE_NAME, "file name"),
            (categories, "id", faults.DUPLICATE_CATEGORY, "category id"),
            (categories, "name", faults.DUPLICATE_CATEGORY, "category name"),
        ):
            for value, count in repeated(entry[key] for entry in entries).items():
                what = f"{noun} {quoted(value)} occurs {count} times"
                yield self.data_set.finding(kind, what, value)

    def _category_findings(self, used: set[Hashable], roots: list[dict]) -> Iterator[Finding]:
        """Compare the file's categories with the config's classes and with what the objects use."""
        finding, categories = self.data_set.finding, self.content["categories"]
        of_file = [category["name"] for category in categories]
        # A config without classes takes them as they come.
        classes = self.data_set.classes or tuple(of_file)
        for name in classes:
            if name not in of_file:
                what = f"class {quoted(name)} is not in the file"
                yield finding(faults.MISSING_CATEGORY, what, str(name))
        for category in categories:
            id_, name = category["id"], category["name"]
            what = f"category {quoted(id_)} ({quoted(name)})"
            if name not in classes:
                yield finding(faults.IGNORED_CATEGORY, f"{what} is no class of the config", id_)
            elif id_ not in used and category not in roots:  # Roots have been reported.
                yield finding(faults.UNUSED_CATEGORY, f"{what} has no object", id_)
        of_config = [name for name in classes if name in of_file]
        of_file = [name for name in of_file if name in classes]
        if of_file != of_config and len(of_file) == len(of_config):
            label = next(i for i, name in enumerate(of_file) if name != of_config[i])
            theirs, ours = quoted(of_file[label]), quoted(of_config[label])
            what = f"of the {len(of_file)} classes, the first that differs is label {label}: "
            yield finding(
                faults.CATEGORY_ORDER, f"{what}{theirs} in the file, {ours} in the config"
            )

    def _object_findings(self) -> Iterator[Finding]:
        """What is wrong with single objects: their fields, categories, images and boxes."""
        finding, entries = self.object_finding, self.objects
        for row, id_ in enumerate(id_column(entries, "id")):
            if id_ is None:
                yield finding(faults.MALFORMED_ENTRY, row, f"has {coco.NO_ID}")
        for key in self.needed_fields():
            for row, entry in enumerate(entries):
                if type(entry.get(key)) is not int and not is_number(entry.get(key)):
                    yield finding(faults.MALFORMED_ENTRY, row, f"has no number as {key}")
        known = {category["id"] for category in self.content["categories"]}
        for row, id_ in enumerate(id_column(entries, "category_id")):
            if id_ not in known:
                stored = quoted(entries[row].get("category_id"))
                what = f"has category {stored}, which is not listed"
                yield finding(faults.UNKNOWN_CATEGORY, row, what)
        size_of = {}
        for id_, image in self.images.items():
            size = image.get("width"), image.get("height")
            is_known = all(map(is_size, size)) and max(size) < 2**31
            size_of[id_] = size if is_known else _UNKNOWN_SIZE
        for row, id_ in enumerate(self.image_ids):
            if id_ not in size_of:
                yield finding(faults.UNKNOWN_IMAGE, row, "has an image that is not listed")
        sizes = [size_of.get(id_, _UNKNOWN_SIZE) for id_ in self.image_ids]
        sizes = np.array(sizes, np.float64).reshape(-1, 2)
        stored = [entry.get("bbox") for entry in entries]
        for kind, faulty in box_faults(box_array(stored), sizes):
            for row in faulty.tolist():
                size = "x".join(f"{side:.0f}" for side in sizes[row] if side == side)
                what = f"has the box {quoted(stored[row])}{f', image {size}' if size else ''}"
                yield finding(kind, row, what)


def id_column(entries: list[dict[str, Any]], key: str) -> list[Any]:
    """What each entry has under ``key``; None where it is no id."""
    values = [entry.get(key) for entry in entries]
    if set(map(type, values)) <= {int, str}:
        return values
    return [value if is_id(value) else None for value in values]


def box_array(values: list[Any]) -> np.ndarray:
    """Boxes as the annotations have them, float64 ``(N, 4)``; NaN for what is not four finite numbers."""
    if all(type(value) is list and len(value) == 4 for value in values):
        numbers = list(chain.from_iterable(values))
        # Five times as fast as looking at each number. It overflows at an integer larger than any float.
        if set(map(type, numbers)) <= {int, float}:
            with contextlib.suppress(OverflowError):
                boxes = np.array(numbers, np.float64).reshape(-1, 4)
                boxes[~np.isfinite(boxes).all(axis=1)] = np.nan
                return boxes
    boxes = [value if coco.is_box(value) else [np.nan] * 4 for value in values]
    return np.array(boxes, np.float64).reshape(-1, 4)


def box_faults(boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[FaultKind, np.ndarray]]:
    """What is wrong with which boxes, as a kind and rows ``(M,)``; at most one fault each.

    ``boxes`` ``(N, 4)`` are x, y, width and height in pixels, ``sizes`` ``(N, 2)`` width and height of the
    images; NaN where there is none.
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
