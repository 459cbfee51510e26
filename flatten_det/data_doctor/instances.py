"""COCO files of instances: their annotations, and one image with its masks at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .data_sets import DataSet
from .entries import category_findings, duplicate_entries, repeated
from .findings import Finding, quoted
from .images import image_findings
from .json_file import CocoContent
from .kinds import DUPLICATE_ANNOTATION_ID, FOLDER_MISSING, MASK_MISSING
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
    yield from duplicate_entries(data_set, content)
    for id_, count in repeated(id_column(objects.entries, "id")).items():
        if id_ is not None:
            yield data_set.finding(
                DUPLICATE_ANNOTATION_ID, f"annotation id {quoted(id_)} occurs {count} times", id_
            )
    needed = ("area", "iscrowd") if data_set.evaluated else ("area",)
    yield from object_findings(data_set, content, objects, needed)
    if data_set.learns_masks:
        for row, entry in enumerate(objects.entries):
            if not entry.get("segmentation"):
                yield objects.finding(data_set, MASK_MISSING, row, "has no segmentation")
    yield from category_findings(data_set, content, set(objects.category_ids()))


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
