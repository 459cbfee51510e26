"""COCO files of instances: their annotations, and one image with its masks at a time."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..coco_values import can_be_matched, is_id, is_number, is_size
from .data_sets import DataSet
from .entries import category_findings, classes_of, duplicate_entries, mixed_id_findings, repeated
from .findings import Finding, quoted
from .images import image_findings
from .json_file import CocoContent
from .kinds import DUPLICATE_ANNOTATION_ID, FOLDER_MISSING, MASK_MISSING, MISREAD_ID
from .masks import mask_fault
from .objects import Objects, id_column, object_findings
from .outcome import Outcome


def objects_of(content: CocoContent) -> Objects:
    """The annotations of a file."""
    image_ids = id_column(content.annotations, "image_id")
    return Objects("annotation", content.annotations, image_ids)


def annotation_findings(
    data_set: DataSet, content: CocoContent, objects: Objects
) -> Iterator[Finding]:
    """What is wrong with the annotation file itself; no image is opened."""
    if not Path(data_set.images).is_dir():
        folder = data_set.images
        yield data_set.finding(FOLDER_MISSING, f"image folder {folder} not found", file=folder)
    yield from duplicate_entries(data_set, content, set(objects.category_ids()))
    for id_, count in repeated(id_column(objects.entries, "id")).items():
        if id_ is not None:
            yield data_set.finding(
                DUPLICATE_ANNOTATION_ID, f"annotation id {quoted(id_)} occurs {count} times", id_
            )
    if data_set.evaluated:
        yield from mixed_id_findings(data_set, content)
        for row, id_ in enumerate(id_column(objects.entries, "id")):
            if id_ is not None and not can_be_matched(id_):
                what = "has an id that is no number, or 0, which means no match to pycocotools"
                yield objects.finding(data_set, MISREAD_ID, row, what)
    needed = ("area", "iscrowd") if data_set.evaluated else ("area",)
    yield from object_findings(data_set, content, objects, needed)
    if data_set.learns_masks:
        for row, entry in enumerate(objects.entries):
            if not entry.get("segmentation"):
                yield objects.finding(data_set, MASK_MISSING, row, "has no segmentation")
    yield from category_findings(data_set, content, set(objects.category_ids()))


def why_it_does_not_count(
    data_set: DataSet, content: CocoContent, to_learn: bool
) -> Callable[[dict[str, Any]], str | None]:
    """What tells whether an annotation is learned, or measured, and why not.

    Args:
        data_set: where it belongs.
        content: of the annotation file.
        to_learn: whether it is for a training, as MMDetection reads it, or for pycocotools.

    Returns:
        A function that gives words for several annotations ("are ..."); None for one that counts.
    """
    known = classes_of(data_set, content)
    images = {image["id"]: image for image in content.images}

    def reason(entry: dict[str, Any]) -> str | None:
        image_id, category_id, box = (entry.get(k) for k in ("image_id", "category_id", "bbox"))
        image = images.get(image_id) if is_id(image_id) else None
        if image is None:
            return "are of images that are not listed"
        if not (is_id(category_id) and category_id in known):
            return "are of no class of the config"
        if entry.get("iscrowd"):
            return "are crowds (iscrowd 1), which are left out"
        if not to_learn:
            return None
        if entry.get("ignore"):
            return "are to be ignored (ignore)"
        size = [image.get("width"), image.get("height")]
        if not all(map(is_size, size)):
            return None  # That is said of the image.
        if min(size) < data_set.min_size:
            return f"are in images smaller than {data_set.min_size} px (filter_cfg's min_size)"
        is_seen = isinstance(box, list) and len(box) == 4 and all(map(is_number, box))
        for start, extent, side in zip(box[:2], box[2:], size, strict=True) if is_seen else ():
            is_seen = is_seen and extent >= 1 and start < side and start + extent > 0
        area = entry.get("area")
        if not is_seen or (is_number(area) and area <= 0):
            return "have no area within their image"
        return None

    return reason


class Images:
    """The images of a data set, each of which can be examined by itself.

    Args:
        data_set: where they belong.
        content: of its annotation file.
        objects: likewise.
    """

    def __init__(self, data_set: DataSet, content: CocoContent, objects: Objects):
        self.data_set, self.content, self.objects = data_set, content, objects
        rows: dict[Any, list[int]] = {image["id"]: [] for image in content.images}
        for row, image_id in enumerate(objects.image_ids):
            if image_id in rows:
                rows[image_id].append(row)
        self._rows = rows

    def __len__(self) -> int:
        return len(self.content.images)

    def __getitem__(self, index: int) -> Outcome:
        """Examine an image and the masks of its objects."""
        image = self.content.images[index]
        findings = list(image_findings(self.data_set, image))
        for row in self._rows[image["id"]]:
            segmentation = self.objects.entries[row].get("segmentation")
            fault = mask_fault(segmentation, image) if segmentation else None
            if fault is not None:
                kind, what = fault
                findings.append(self.objects.finding(self.data_set, kind, row, what))
        return Outcome(findings)
