"""Predictions as one file of COCO's results, and the ids in it."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from ..data.coco import CATEGORY_NEEDS, IMAGE_NEEDS, NotJsonError, is_coco, parse_json
from ..errors import UserError, did_you_mean, listed
from ..files.atomic import write_atomically
from ..files.user_files import NotUtf8Error, why_not_read
from ..results import Prediction

RESULTS, IDS = "predictions.json", "predictions-ids.json"


class CocoResults:
    """Collects predictions for ``predictions.json``, which pycocotools evaluates.

    Args:
        images: paths of all images; those of an annotation file are found by their names.
        names: class names by label.
        annotations: COCO's annotation file, whose ids are taken. None: the numbers that are the images'
            names, if all are (as COCO's own); else 1, 2, 3, ... in their order; and category ids of COCO for
            its 80 classes, else 1, 2, 3, ... by label. :meth:`write` then puts them into
            ``predictions-ids.json`` too, in the form of an annotation file.

    Raises:
        UserError: the annotation file cannot be read, or lacks an image or a class.
    """

    def __init__(
        self, images: Sequence[str], names: Sequence[str], annotations: str | None = None
    ) -> None:
        self._annotations = annotations
        if annotations is None:
            self._image_ids = _numbered(images)
            self._category_ids = _category_ids(names)
        else:
            content = _read(annotations)
            self._image_ids = dict(_found(images, content["images"], annotations))
            self._category_ids = _known(names, content["categories"], annotations)
        self._names = names
        self._sizes: dict[str, tuple[int, int]] = {}
        self._entries: list[dict[str, Any]] = []

    def add(self, prediction: Prediction) -> None:
        """Add the detections of an image."""
        image_id = self._image_ids[prediction.source]
        self._sizes[prediction.source] = prediction.size
        self._entries += prediction.to_coco(image_id, self._category_ids)

    def write(self, folder: Path) -> list[Path]:
        """Write the files; returns their paths."""
        contents = {RESULTS: self._entries}
        if self._annotations is None:
            contents[IDS] = {
                "images": [
                    {
                        "id": self._image_ids[path],
                        "file_name": path,
                        "height": height,
                        "width": width,
                    }
                    for path, (height, width) in self._sizes.items()
                ],
                "annotations": [],
                "categories": [
                    {"id": id_, "name": name}
                    for id_, name in zip(self._category_ids, self._names, strict=True)
                ],
            }
        for name, content in contents.items():
            write_atomically(folder / name, json.dumps(content).encode(), durable=False)
        return [folder / name for name in contents]


def _numbered(images: Sequence[str]) -> dict[str, int]:
    stems = [PurePath(path).stem for path in images]
    ids = [int(stem) for stem in stems if stem.isascii() and stem.isdecimal()]
    if len(set(ids)) < len(images):
        ids = range(1, len(images) + 1)
    return dict(zip(images, ids, strict=True))


def _category_ids(names: Sequence[str]) -> list[int]:
    of_coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # By their ids, with gaps.
    if set(of_coco) - {"__background__", "N/A"} <= set(names):
        # A panoptic model's further classes are of no objects.
        return [of_coco.index(name) if name in of_coco else 0 for name in names]
    return list(range(1, len(names) + 1))


def _read(path: str) -> dict[str, Any]:
    if reason := why_not_read(path):
        raise UserError(f"annotation file {path} {reason}: check --coco-annotations")
    try:
        content = parse_json(Path(path).read_bytes())
    except (NotUtf8Error, NotJsonError) as error:
        raise UserError(f"annotation file {path} {error}") from error
    if not is_coco(content):
        raise UserError(
            f"annotation file {path} is none of COCO: it needs the lists images, annotations, categories"
        )
    for key, needs in (("images", IMAGE_NEEDS), ("categories", CATEGORY_NEEDS)):
        for entry in content[key]:
            for fault, is_met in needs:
                if not (isinstance(entry, dict) and is_met(entry)):
                    raise UserError(f"annotation file {path}: one of its {key} has {fault}")
    return content


def _found(
    images: Sequence[str], entries: Sequence[Mapping[str, Any]], file: str
) -> Iterator[tuple[str, Any]]:
    """Each image with its id: of the entry with the same name, and of several the one in the same folder."""
    by_name = defaultdict(list)
    for entry in entries:
        by_name[PurePath(entry["file_name"]).name].append(entry)
    missing = []
    for path in images:
        place = PurePath(path)
        fitting = by_name[place.name]
        if len(fitting) > 1:
            fitting = [e for e in fitting if f"/{place.as_posix()}".endswith(f"/{e['file_name']}")]
        if len(fitting) == 1:
            yield path, fitting[0]["id"]
        else:
            missing.append(path)
    if missing:
        raise UserError(
            f"{listed(missing)}: not, or not once, among the images of {file}: give others, or leave "
            "--coco-annotations out"
        )


def _known(names: Sequence[str], categories: Sequence[Mapping[str, Any]], file: str) -> list[Any]:
    ids = {category["name"]: category["id"] for category in categories}
    if unknown := [name for name in names if name not in ids]:
        raise UserError(
            f"the model's classes {listed(unknown)} are no categories of {file}: "
            f"{did_you_mean(unknown[0], ids)}give the annotations that it was trained for"
        )
    return [ids[name] for name in names]
