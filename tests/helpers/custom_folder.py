"""A data set of somebody else: names, ids and sizes are not those of COCO."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Names that a careless writer of configs would break, ids that do not count up.
CATEGORIES = {7: "o'range", 3: 'pear "green"', 11: "Äpfel {{ fileDirname }} \\"}
# (height, width): larger, smaller and of other shapes than a quickstart's 128 px.
_SIZES = [(150, 210), (96, 128), (128, 100), (70, 90)]


def make_custom_split(folder: Path, count: int, prefix: str = "") -> dict[str, Any]:
    """Write ``count`` images below ``folder`` and return their COCO annotations.

    Each image has a bright disc per category, with boxes and polygons.

    Args:
        folder: where the images go.
        count: how many.
        prefix: of the file names, such as ``"day1/"``.
    """
    rng = np.random.default_rng(count)
    images, annotations = [], []
    for index in range(count):
        height, width = _SIZES[index % len(_SIZES)]
        image = rng.integers(0, 80, (height, width, 3), np.uint8)
        for number, category in enumerate(CATEGORIES):
            center = (width * (2 * number + 1) // 6, int(height * rng.uniform(0.3, 0.7)))
            outline = cv2.ellipse2Poly(center, (13, 15), 0, 0, 360, 20)
            cv2.fillPoly(
                image, [outline], [60 * (number == i) + 180 * (number != i) for i in range(3)]
            )
            x, y, w, h = cv2.boundingRect(outline)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": f"{index}",
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": float(cv2.contourArea(outline)),
                    "segmentation": [outline.ravel().tolist()],
                    "iscrowd": 0,
                }
            )
        name = f"{prefix}photo {index}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image)
        images.append({"id": f"{index}", "file_name": name, "width": width, "height": height})
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_json(path: Path, content: Any) -> Path:
    """Write an annotation file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def make_custom_folder(root: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """Write ``train/`` and ``valid/`` with the images and ``_annotations.coco.json`` in each."""
    for split, count in (("train", num_train), ("valid", num_val)):
        content = make_custom_split(root / split, count)
        write_json(root / split / "_annotations.coco.json", content)
    return root
