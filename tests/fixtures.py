"""Tiny data sets in the layouts of COCO and ADE20K, made by hand-sized code."""

import json
from pathlib import Path

import cv2
import numpy as np
from mmdet.datasets import CocoDataset
from pycocotools import mask as coco_mask

# The official ids of the 80 classes have gaps.
COCO_CATEGORY_IDS = sorted(set(range(1, 91)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
# (height, width); none is a multiple of the strides, aspect ratios on both sides of 1.
IMAGE_SIZES = [(61, 97), (97, 61), (50, 75), (75, 75), (83, 45), (49, 111)]


def make_coco_folder(root: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """Write ``annotations/instances_{train,val}2017.json`` and ``{train,val}2017/*.jpg``.

    Each image has up to three polygon-annotated ellipses; the second of each split has a crowd
    region (RLE) too, and the last training image has no object, which mmdet filters out.
    """
    for split, count in (("train2017", num_train), ("val2017", num_val)):
        rng = np.random.default_rng(0)
        (root / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(count):
            size = IMAGE_SIZES[index % len(IMAGE_SIZES)]
            empty = split == "train2017" and index == count - 1
            image = rng.integers(0, 90, (*size, 3), np.uint8)
            for number in range(0 if empty else 1 + index % 3):
                annotations.append(_draw_ellipse(image, rng, index + 1, number))
            if index == 1:
                annotations.append(_crowd(size, index + 1))
            name = f"{index + 1:012d}.jpg"
            cv2.imwrite(str(root / split / name), image)
            height, width = size
            images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for number, annotation in enumerate(annotations):
            annotation["id"] = number + 1
        categories = [
            {"id": id_, "name": name}
            for id_, name in zip(COCO_CATEGORY_IDS, CocoDataset.METAINFO["classes"], strict=True)
        ]
        path = root / "annotations" / f"instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            json.dumps({"images": images, "annotations": annotations, "categories": categories})
        )
    return root


def _draw_ellipse(image: np.ndarray, rng: np.random.Generator, image_id: int, number: int) -> dict:
    height, width = image.shape[:2]
    center = (int(width * rng.uniform(0.3, 0.7)), int(height * rng.uniform(0.3, 0.7)))
    axes = (int(width * rng.uniform(0.12, 0.25)), int(height * rng.uniform(0.12, 0.25)))
    outline = cv2.ellipse2Poly(center, axes, int(rng.integers(0, 180)), 0, 360, 20)
    cv2.fillPoly(image, [outline], rng.integers(150, 255, 3).tolist())
    x, y, w, h = cv2.boundingRect(outline)
    return {
        "image_id": image_id,
        "category_id": COCO_CATEGORY_IDS[(image_id * 7 + number * 23) % 80],
        "bbox": [x, y, w, h],
        "area": float(cv2.contourArea(outline)),
        "segmentation": [outline.ravel().tolist()],
        "iscrowd": 0,
    }


def _crowd(size: tuple[int, int], image_id: int) -> dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[:10, :20] = 1
    # COCO's own files have uncompressed run lengths for crowds: column by column, zeros first.
    changes = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=0, append=2))
    counts = np.diff(changes, prepend=0).tolist()
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": coco_mask.toBbox(coco_mask.encode(mask)).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": list(size), "counts": counts},
        "iscrowd": 1,
    }


def make_ade20k_folder(root: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """Write ``images/{training,validation}/*.jpg`` and ``annotations/…/*.png`` like ADE20K's.

    Label maps hold 0 for "not labelled" and 1 to 150 for the classes (``reduce_zero_label``).
    """
    for split, short, count in (("training", "train", num_train), ("validation", "val", num_val)):
        rng = np.random.default_rng(0)
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            height, width = IMAGE_SIZES[index % len(IMAGE_SIZES)]
            image = rng.integers(0, 90, (height, width, 3), np.uint8)
            labels = np.full((height, width), 3, np.uint8)
            labels[: height // 2] = 1 + index
            labels[:, : width // 3] = 150
            labels[:5] = 0
            image[: height // 2] += 60
            image[:, : width // 3] += 100
            name = f"ADE_{short}_{index + 1:08d}"
            cv2.imwrite(str(root / "images" / split / f"{name}.jpg"), image)
            cv2.imwrite(str(root / "annotations" / split / f"{name}.png"), labels)
    return root
