"""Cityscapes: archives behind a login, unpacked here and converted for MMDetection and MMSegmentation.

The tables are the public ones of the data set: its label ids, the 19 ids for training, and the 8 classes
with instances.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from ...errors import UserError
from ...files.atomic import write_atomically
from ...files.images import why_not_decoded
from ..coco import in_threads, mask_fields
from .layout import Archive, Files, Listing, Pairs, PublicDataSet

# Label ids in the order of the train ids 0 to 18; all others are 255, "not for training".
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
NOT_TRAINED = 255
# In MMDetection's order, which is that of the label ids.
_THING_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
_THING_NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
THINGS = dict(zip(_THING_IDS, _THING_NAMES, strict=True))
# An instance map holds label * 1000 + number, or the label alone for a group that is not told apart.
_PER_LABEL = 1000


def cityscapes(counts: dict[str, int]) -> PublicDataSet:
    """The data set with these numbers of images per split."""
    splits = counts.items()
    images = [Files(f"leftImg8bit/{split}", "_leftImg8bit.png", count) for split, count in splits]
    labels, instances, train_ids = (
        [Files(f"gtFine/{split}", f"_gtFine_{kind}.png", count) for split, count in splits]
        for kind in ("labelIds", "instanceIds", "labelTrainIds")
    )
    pairs = map(Pairs, images, train_ids)
    listings = map(Listing, map(instances_file, counts), images)
    parts = (*images, *train_ids, *instances, *pairs, *listings)
    archives = (
        Archive("", "leftImg8bit_trainvaltest.zip", tuple(images), unpacked=11_700_000_000),
        Archive("", "gtFine_trainvaltest.zip", (*labels, *instances), unpacked=1_200_000_000),
    )

    def convert(root: Path) -> None:
        for split in counts:
            write_train_ids(root, split)
            write_instances(root, split)

    return PublicDataSet("Cityscapes", parts, archives, convert, steps)


def instances_file(split: str) -> str:
    """Where MMDetection looks for the instances of a split, relative to the data set's root."""
    return f"annotations/instancesonly_filtered_gtFine_{split}.json"


def steps(folder: Path) -> str:
    """How to get what this package cannot download."""
    return f"""Cityscapes must be downloaded by hand, because its licence takes a login:
  1. Register at https://www.cityscapes-dataset.com/downloads/ (free for research) and log in.
  2. Download gtFine_trainvaltest.zip (241 MB) and leftImg8bit_trainvaltest.zip (11 GB).
  3. Put both, as they are, into {folder.absolute()}
  4. Run the same command again: it unpacks, converts and checks them."""


CITYSCAPES = cityscapes({"train": 2975, "val": 500})


def write_train_ids(root: Path, split: str) -> None:
    """Write ``*_gtFine_labelTrainIds.png`` beside each ``*_gtFine_labelIds.png`` of a split that has none.

    UserError if a label map cannot be read.
    """
    table = np.full(256, NOT_TRAINED, np.uint8)
    table[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))

    def target(source: Path) -> Path:
        return source.with_name(source.name.replace("_labelIds.png", "_labelTrainIds.png"))

    def convert(source: Path) -> None:
        _, encoded = cv2.imencode(".png", table[_label_map(source)])
        write_atomically(target(source), encoded.tobytes(), durable=False)

    sources = sorted((root / "gtFine" / split).glob("*/*_gtFine_labelIds.png"))
    todo = [source for source in sources if not target(source).exists()]
    for _ in in_threads(convert, todo, f"Train ids of {split}"):
        pass


def write_instances(root: Path, split: str) -> None:
    """Write the instances of a split as a COCO file (:func:`instances_file`), unless it is there.

    Category ids are Cityscapes' label ids, file names start at the city, and groups that are not told
    apart are crowds, all as MMDetection's data set expects. UserError if an instance map cannot be read.
    """
    target = root / instances_file(split)
    if target.exists():
        return
    maps = sorted((root / "gtFine" / split).glob("*/*_gtFine_instanceIds.png"))
    images, annotations = [], []
    found = in_threads(_instances, maps, f"Instances of {split}")
    for image_id, (path, (size, instances)) in enumerate(zip(maps, found, strict=True), start=1):
        name = path.name.replace("_gtFine_instanceIds.png", "_leftImg8bit.png")
        image = {"id": image_id, "file_name": f"{path.parent.name}/{name}"}
        images.append({**image, "height": size[0], "width": size[1]})
        annotations += [{"image_id": image_id, **instance} for instance in instances]
    content = {
        "images": images,
        # pycocotools takes a match with annotation 0 for no match, so ids start at 1.
        "annotations": [{"id": i, **item} for i, item in enumerate(annotations, start=1)],
        "categories": [{"id": label, "name": name} for label, name in THINGS.items()],
    }
    write_atomically(target, json.dumps(content).encode())


def _instances(path: Path) -> tuple[tuple[int, int], list[dict]]:
    """Height and width of an instance map, and its annotations without ids."""
    # Column by column, as the masks are encoded: turned once instead of once per mask.
    ids = np.asfortranarray(_label_map(path))
    found = []
    for number in np.flatnonzero(np.bincount(ids.ravel(order="K"))).tolist():
        label = number // _PER_LABEL if number >= _PER_LABEL else number
        if label in THINGS:
            fields = mask_fields((ids == number).view(np.uint8), int(number < _PER_LABEL))
            found.append({"category_id": label, **fields})
    return ids.shape, found


def _label_map(path: Path) -> np.ndarray:
    """A map of whole numbers, (H, W)."""
    if refusal := why_not_decoded(path):
        raise UserError(refusal)
    content = np.frombuffer(path.read_bytes(), np.uint8)
    values = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if values is None or values.ndim != 2:
        raise UserError(f"{path} is not a label map: remove it and unpack its archive again")
    return values
