"""COCO's panoptic files: their segments, and one image with its label map at a time."""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...compat.panoptic_api import rgb2id
from ...errors import listed
from ..coco import CROWDS, is_id, repeated, stays_inside
from . import faults
from .annotations import CocoCheck, Content, id_column
from .data_sets import ConfiguredDataSet
from .faults import Finding, quoted
from .images import LABEL_MAPS, ImageFault, by, image_name, opened, turned_label_map

_MAX_IDS = 5
_MAX_ID = 2**24 - 1  # As red, green and blue.


class PanopticCheck(CocoCheck):
    """Segments are the objects of a panoptic file, which has one annotation for each image."""

    noun = "segment"

    def __init__(self, data_set: ConfiguredDataSet, content: Content):
        super().__init__(data_set, content)
        self._annotated = Counter(id_column(content["annotations"], "image_id"))

    def find_objects(self) -> tuple[list[dict[str, Any]], list[Any]]:
        """The segments, and the ids of their images."""
        entries, image_ids = [], []
        for annotation in self.content["annotations"]:
            found = annotation.get("segments_info")
            found = [s for s in found if type(s) is dict] if isinstance(found, list) else []
            image_id = annotation.get("image_id")
            entries += found
            image_ids += [image_id if is_id(image_id) else None] * len(found)
        return entries, image_ids

    def own_findings(self) -> Iterator[Finding]:
        """Faults of categories, of the images' annotations, and of ids."""
        finding = self.data_set.finding
        for category in self.content["categories"]:
            if category.get("isthing") not in (0, 1):
                what = f"category {quoted(category['id'])} has no isthing of 0 or 1"
                yield finding(faults.MALFORMED_ENTRY, what, category["id"])
        yield from self._image_annotations()
        ids = id_column(self.objects, "id")
        for (image_id, id_), count in repeated(zip(self.image_ids, ids, strict=True)).items():
            if id_ is not None:
                what = f"segment id {quoted(id_)} occurs {count} times in image {quoted(image_id)}"
                yield finding(faults.DUPLICATE_ANNOTATION_ID, what, id_)
        for row, id_ in enumerate(ids):
            if id_ is not None and not (type(id_) is int and 0 < id_ <= _MAX_ID):
                what = f"has an id that is no number from 1 to {_MAX_ID}, which its label map could show"
                yield self.object_finding(faults.MISREAD_ID, row, what)

    def _image_annotations(self) -> Iterator[Finding]:
        finding, annotated = self.data_set.finding, self._annotated
        for annotation in self.content["annotations"]:
            image_id, segments = annotation.get("image_id"), annotation.get("segments_info")
            id_, found = image_id if is_id(image_id) else None, []
            if not isinstance(segments, list) or not all(type(s) is dict for s in segments):
                found.append((faults.MALFORMED_ENTRY, "has no list segments_info"))
            elif id_ is None or (not segments and id_ not in self.images):
                found.append((faults.UNKNOWN_IMAGE, "has an image that is not listed"))
            name = annotation.get("file_name")
            if not isinstance(name, str) or not name:
                found.append((faults.MALFORMED_ENTRY, "has no file_name"))
            elif not stays_inside(name):
                what = f"names {quoted(name)}, which leaves the folder of label maps"
                found.append((faults.FILE_NAME_LEAVES, what))
            for kind, what in found:
                yield finding(kind, f"the annotation of image {quoted(image_id)} {what}", id_)
        for id_, image in self.images.items():
            if annotated[id_] > 1:
                what = f"{image_name(image)} has {annotated[id_]} annotations instead of one"
                yield finding(faults.DUPLICATE_ANNOTATION_ID, what, id_)
            elif not annotated[id_]:
                what = f"{image_name(image)} has no annotation, and so no label map"
                yield finding(faults.LABEL_MAP_MISSING, what, id_)

    def why_not(self, entry: dict[str, Any], to_learn: bool) -> str | None:
        """Crowds, what is of no class, and stuff where images without things are left out."""
        category_id = entry.get("category_id")
        category = self.classes.get(category_id) if is_id(category_id) else None
        if category is None:
            return "are of no class of the config"
        if entry.get("iscrowd") and (category.get("isthing") or not to_learn):
            return CROWDS
        if to_learn and self.data_set.needs_objects and not category.get("isthing"):
            return "are stuff, in images without a thing, which filter_cfg's filter_empty_gt leaves out"
        return None

    def other_findings(self, image: dict) -> Iterator[Finding]:
        """What is wrong with its label map, if there is one."""
        is_named = image["id"] in self._annotated and stays_inside(image["file_name"])
        if self.data_set.label_maps is None or not is_named:
            return
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
            yield finding(faults.LABEL_MAP_FORMAT, what)
            return
        stated = image.get("width"), image.get("height")
        if None not in stated and label_map.size != stated:
            what = f"is {by(label_map.size)}, the image {by(stated)}"
            yield finding(faults.LABEL_MAP_SIZE, what)
        if label_map.mode not in ("RGB", "RGBA"):
            what = f"is not RGB, from which ids are read (Pillow's mode {label_map.mode})"
            yield finding(faults.LABEL_MAP_FORMAT, what)
            return
        shown = set(np.unique(rgb2id(np.asarray(label_map)[..., :3])).tolist()) - {0}
        entries = ((row, self.objects[row].get("id")) for row in self.rows.get(image["id"], ()))
        rows = {id_: row for row, id_ in entries if is_id(id_)}
        if unknown := sorted(shown - rows.keys()):
            what = f"shows segments that the file does not list: {listed(unknown, _MAX_IDS)}"
            yield finding(faults.UNKNOWN_LABEL, what)
        for id_, row in rows.items():
            if id_ not in shown:
                what = f"has no pixel in {quoted(name)}"
                yield self.object_finding(faults.SEGMENT_MISSING, row, what)
