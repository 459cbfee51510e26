"""COCO's panoptic annotations for the tiny data set of fixtures.py, from its instances."""

import json
from pathlib import Path

import cv2
import numpy as np
from mmdet.datasets import CocoPanopticDataset
from pycocotools import mask as coco_mask

STUFF_CLASSES = CocoPanopticDataset.METAINFO["stuff_classes"]


def add_panoptic_annotations(root: Path) -> Path:
    """Write ``annotations/panoptic_{train,val}2017.json`` and the PNG files of their folders.

    Beside the objects and crowds, every image has one stuff segment, and rows that are void.
    """
    for split in ("train2017", "val2017"):
        content = json.loads((root / "annotations" / f"instances_{split}.json").read_text())
        folder = root / "annotations" / f"panoptic_{split}"
        folder.mkdir()
        things = [{**category, "isthing": 1} for category in content["categories"]]
        stuff = [{"id": 92 + i, "name": name, "isthing": 0} for i, name in enumerate(STUFF_CLASSES)]
        panoptic = []
        for image in content["images"]:
            objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            ids, segments = _segments(image, objects, stuff[image["id"] % len(stuff)]["id"])
            name = image["file_name"].replace(".jpg", ".png")
            # OpenCV writes BGR; the red byte of an id is the lowest.
            cv2.imwrite(str(folder / name), np.stack([ids * 0, ids // 256, ids % 256], axis=-1))
            panoptic.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
        content |= {"annotations": panoptic, "categories": [*things, *stuff]}
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return root


def _segments(
    image: dict, objects: list[dict], stuff_category: int
) -> tuple[np.ndarray, list[dict]]:
    """Segment ids (H, W), and the segments of one image; ids use two bytes, as most of COCO's do."""
    shape = (image["height"], image["width"])
    stuff = {"id": 300, "category_id": stuff_category, "iscrowd": 0}
    ids = np.full(shape, stuff["id"], np.int32)
    ids[-3:] = 0
    records = [stuff]
    for number, annotation in enumerate(objects):
        record = {key: annotation[key] for key in ("category_id", "iscrowd")}
        record["id"] = 301 + number
        if annotation["iscrowd"]:
            rle = coco_mask.frPyObjects(annotation["segmentation"], *shape)
            ids[coco_mask.decode(rle).astype(bool)] = record["id"]
        else:
            outline = np.reshape(annotation["segmentation"][0], (-1, 1, 2)).astype(np.int32)
            cv2.fillPoly(ids, [outline], record["id"])
        records.append(record)
    for record in records:
        mask = np.asfortranarray(ids == record["id"], np.uint8)
        record["area"] = int(mask.sum())
        record["bbox"] = coco_mask.toBbox(coco_mask.encode(mask)).tolist()
    return ids, [record for record in records if record["area"]]
