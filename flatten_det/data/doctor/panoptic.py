"""COCO's panoptic files: their segments, and one image with its label map at a time."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..coco_values import is_id, stays_inside
from ...compat.panoptic_api import rgb2id
from .data_sets import DataSet
from .entries import category_findings, classes_of, duplicate_entries, repeated
from .findings import Finding, quoted
from .images import LABEL_MAPS, ImageFault, by, image_findings, opened, turned_label_map
from .json_file import CocoContent, image_name
from .kinds import (
    DUPLICATE_ANNOTATION_ID,
    FILE_NAME_LEAVES,
    FOLDER_MISSING,
    LABEL_MAP_FORMAT,
    LABEL_MAP_MISSING,
    LABEL_MAP_SIZE,
    MALFORMED_ENTRY,
    MISREAD_ID,
    SEGMENT_MISSING,
    UNKNOWN_IMAGE,
    UNKNOWN_LABEL,
)
from .objects import Objects, id_column, object_findings
from .outcome import Outcome

_MAX_IDS = 5
_MAX_ID = 2**24 - 1  # As red, green and blue.


def objects_of(content: CocoContent) -> Objects:
    """The segments of a file."""
    entries, image_ids = [], []
    for annotation in content.annotations:
        of_image = annotation.get("segments_info")
        of_image = [s for s in of_image if type(s) is dict] if isinstance(of_image, list) else []
        image_id = annotation.get("image_id")
        entries += of_image
        image_ids += [image_id if is_id(image_id) else None] * len(of_image)
    return Objects("segment", entries, image_ids)


def annotation_findings(
    data_set: DataSet, content: CocoContent, segments: Objects
) -> Iterator[Finding]:
    """What is wrong with the annotation file itself; no image is opened."""
    for noun, folder in (("image", data_set.images), ("label map", data_set.label_maps)):
        if folder is not None and not Path(folder).is_dir():
            yield data_set.finding(FOLDER_MISSING, f"{noun} folder {folder} not found", file=folder)
    yield from duplicate_entries(data_set, content, set(segments.category_ids()))
    for category in content.categories:
        if category.get("isthing") not in (0, 1):
            what = f"category {quoted(category['id'])} has no isthing of 0 or 1"
            yield data_set.finding(MALFORMED_ENTRY, what, category["id"])
    yield from _image_annotations(data_set, content)
    pairs = zip(segments.image_ids, id_column(segments.entries, "id"), strict=True)
    for (image_id, id_), count in repeated(pairs).items():
        if id_ is not None:
            what = f"segment id {quoted(id_)} occurs {count} times in image {quoted(image_id)}"
            yield data_set.finding(DUPLICATE_ANNOTATION_ID, what, id_)
    for row, id_ in enumerate(id_column(segments.entries, "id")):
        if id_ is not None and not (type(id_) is int and 0 < id_ <= _MAX_ID):
            what = (
                f"has an id that is no number from 1 to {_MAX_ID}, which its label map could show"
            )
            yield segments.finding(data_set, MISREAD_ID, row, what)
    yield from object_findings(data_set, content, segments, needed=("area",))
    yield from category_findings(data_set, content, set(segments.category_ids()))


def _image_annotations(data_set: DataSet, content: CocoContent) -> Iterator[Finding]:
    """There is one annotation for each image."""
    images = {image["id"]: image for image in content.images}
    annotated = Counter(id_column(content.annotations, "image_id"))
    for annotation in content.annotations:
        image_id, segments = annotation.get("image_id"), annotation.get("segments_info")
        shown = f"the annotation of image {quoted(image_id)}"
        id_ = image_id if is_id(image_id) else None
        if not isinstance(segments, list) or not all(type(s) is dict for s in segments):
            yield data_set.finding(MALFORMED_ENTRY, f"{shown} has no list segments_info", id_)
        elif id_ is None or (not segments and id_ not in images):
            yield data_set.finding(UNKNOWN_IMAGE, f"{shown} has an image that is not listed", id_)
        name = annotation.get("file_name")
        if not isinstance(name, str) or not name:
            yield data_set.finding(MALFORMED_ENTRY, f"{shown} has no file_name", id_)
        elif not stays_inside(name):
            what = f"{shown} names {quoted(name)}, which leaves the folder of label maps"
            yield data_set.finding(FILE_NAME_LEAVES, what, id_)
    for id_, image in images.items():
        if annotated[id_] > 1:
            what = f"{image_name(image)} has {annotated[id_]} annotations instead of one"
            yield data_set.finding(DUPLICATE_ANNOTATION_ID, what, id_)
        elif not annotated[id_]:
            what = f"{image_name(image)} has no annotation, and so no label map"
            yield data_set.finding(LABEL_MAP_MISSING, what, id_)


def why_it_does_not_count(
    data_set: DataSet, content: CocoContent, to_learn: bool
) -> Callable[[dict[str, Any]], str | None]:
    """As that of instances, for segments."""
    known = classes_of(data_set, content)

    def reason(entry: dict[str, Any]) -> str | None:
        category_id = entry.get("category_id")
        category = known.get(category_id) if is_id(category_id) else None
        if category is None:
            return "are of no class of the config"
        if entry.get("iscrowd") and (category.get("isthing") or not to_learn):
            return "are crowds (iscrowd 1), which are left out"
        if to_learn and data_set.needs_objects and not category.get("isthing"):
            return "are stuff, in images without a thing, which filter_cfg's filter_empty_gt leaves out"
        return None

    return reason


class Images:
    """The images of a data set with their label maps, each examined by itself.

    Args:
        data_set: where they belong.
        content: of its annotation file.
        segments: likewise.
    """

    def __init__(self, data_set: DataSet, content: CocoContent, segments: Objects):
        self.data_set, self.content, self.segments = data_set, content, segments
        self._rows: dict[int | str | None, list[int]] = {}
        for row, image_id in enumerate(segments.image_ids):
            self._rows.setdefault(image_id, []).append(row)
        self._annotated = set(id_column(content.annotations, "image_id"))

    def __len__(self) -> int:
        return len(self.content.images)

    def __getitem__(self, index: int) -> Outcome:
        """Examine an image and its label map."""
        image = self.content.images[index]
        findings = list(image_findings(self.data_set, image))
        is_named = image["id"] in self._annotated and stays_inside(image["file_name"])
        if self.data_set.label_maps is not None and is_named:
            findings += self._label_map(image)
        return Outcome(findings)

    def _label_map(self, image: dict) -> Iterator[Finding]:
        # MMDetection goes by the image's name, not by that of the annotation.
        name = image["file_name"].replace(".jpg", ".png")
        path = os.path.join(self.data_set.label_maps, name)

        def finding(kind, what: str) -> Finding:
            message = f"the label map of {image_name(image)} {what}"
            return self.data_set.finding(kind, message, image["id"], path)

        try:
            label_map = opened(path, LABEL_MAPS)
        except ImageFault as fault:
            yield finding(fault.kind, str(fault))
            return
        if what := turned_label_map(label_map):
            yield finding(LABEL_MAP_FORMAT, what)
            return
        stated = image.get("width"), image.get("height")
        if None not in stated and label_map.size != stated:
            yield finding(LABEL_MAP_SIZE, f"is {by(label_map.size)}, the image {by(stated)}")
        if label_map.mode not in ("RGB", "RGBA"):
            what = f"is not RGB, from which ids are read (Pillow's mode {label_map.mode})"
            yield finding(LABEL_MAP_FORMAT, what)
            return
        shown = set(np.unique(rgb2id(np.asarray(label_map)[..., :3])).tolist()) - {0}
        rows = self._rows.get(image["id"], [])
        named = {self.segments.entries[row].get("id"): row for row in rows if self._has_id(row)}
        unknown = sorted(shown - named.keys())
        if unknown:
            more = f", ... and {len(unknown) - _MAX_IDS} more" if len(unknown) > _MAX_IDS else ""
            ids = ", ".join(map(str, unknown[:_MAX_IDS]))
            yield finding(UNKNOWN_LABEL, f"shows segments that the file does not list: {ids}{more}")
        for id_, row in named.items():
            if id_ not in shown:
                yield self.segments.finding(
                    self.data_set, SEGMENT_MISSING, row, f"has no pixel in {quoted(name)}"
                )

    def _has_id(self, row: int) -> bool:
        return is_id(self.segments.entries[row].get("id"))
