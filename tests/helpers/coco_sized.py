"""An annotation file like COCO's, of any size: ``instances_train2017.json`` has 118,287 images."""

import json
from pathlib import Path

import numpy as np

IMAGES, OBJECTS, CLASSES = 118_287, 860_001, 80
_POINTS = 23  # of an outline, in the mean: 450 MB in all, as COCO's file


def write_coco_sized(path: Path, image: str, images: int = IMAGES) -> None:
    """Write a file of so many images, all of which are the one called ``image``, 640 x 480 pixels.

    As in COCO, they have 7.3 objects in the mean, and some none; a hundredth are crowds.
    """
    rng = np.random.default_rng(0)
    objects = np.minimum(rng.geometric(1 / (1 + OBJECTS / IMAGES), images) - 1, 90)
    categories = [
        {"id": i, "name": f"class {i}", "supercategory": f"group {i // 8}"}
        for i in range(1, CLASSES + 1)
    ]
    head = {"info": {"description": "like COCO 2017"}, "licenses": [], "categories": categories}
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "images": [')
        for number in range(images):
            entry = {
                "license": number % 8,
                "file_name": image,
                "coco_url": f"http://images.example/train2017/{number:012d}.jpg",
                "height": 480,
                "width": 640,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": f"http://farm9.example/8186/{number:010d}_a3d8b7b1c8_z.jpg",
                "id": 4 * number,
            }
            file.write(", " * (number > 0) + json.dumps(entry))
        file.write('], "annotations": [')
        owners = np.repeat(np.arange(images), objects)
        for number, owner in enumerate(owners.tolist()):
            file.write(", " * (number > 0) + json.dumps(_annotation(rng, number + 1, 4 * owner)))
        file.write("]}")


def _annotation(rng: np.random.Generator, number: int, image_id: int) -> dict:
    width, height = rng.uniform(4, 320, 2)
    left, top = rng.uniform(0, 640 - width), rng.uniform(0, 480 - height)
    is_crowd = number % 100 == 0
    if is_crowd:
        runs = rng.integers(1, 60, 4 * _POINTS)
        segmentation = {"counts": [*runs.tolist(), int(640 * 480 - runs.sum())], "size": [480, 640]}
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, 3 + int(rng.exponential(_POINTS - 3))))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) / 2 + 0.5
        points = points * (width, height) + (left, top)
        segmentation = [points.round(2).ravel().tolist()]
    return {
        "segmentation": segmentation,
        "area": round(width * height * 0.7, 4),
        "iscrowd": int(is_crowd),
        "image_id": image_id,
        "bbox": [round(float(value), 2) for value in (left, top, width, height)],
        "category_id": 1 + int(CLASSES * rng.power(0.4)) % CLASSES,
        "id": number,
    }
