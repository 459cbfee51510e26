"""COCO annotations and results by hand, and at random."""

from typing import Any

import numpy as np
from pycocotools.coco import COCO


def make_truth(
    objects: list[tuple], classes: int = 2, images: int = 1, size: tuple[int, int] = (640, 640)
) -> COCO:
    """Annotations of ``(class, box)`` and, if need be, ``image, iscrowd``; ids are from 1."""
    annotations = []
    for number, (category, box, *rest) in enumerate(objects):
        image, crowd = (*rest, *(1, 0)[len(rest) :])
        x, y, width, height = box
        annotations.append(
            {
                "id": number + 1,
                "image_id": image,
                "category_id": category,
                "bbox": list(box),
                "area": width * height,
                "iscrowd": crowd,
                "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
            }
        )
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": n + 1, "file_name": f"{n + 1}.jpg", "height": size[0], "width": size[1]}
            for n in range(images)
        ],
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": f"class {n + 1}"} for n in range(classes)],
    }
    truth.createIndex()
    return truth


def make_results(*found: tuple) -> list[dict[str, Any]]:
    """COCO results of ``(class, box, score)`` or ``(class, box, score, image)``."""
    return [
        {"image_id": (*rest, 1)[0], "category_id": category, "bbox": list(box), "score": score}
        for category, box, score, *rest in found
    ]


def random_case(
    seed: int, images: int = 20, classes: int = 5, most: int = 8, guesses: int = 6
) -> tuple[COCO, list[dict[str, Any]]]:
    """Crowds among the objects; detections near these, some of a wrong class or twice, and anywhere."""
    random = np.random.default_rng(seed)
    objects, found = [], []

    def box() -> list[float]:
        return [*random.uniform(0, 400, 2).tolist(), *random.uniform(5, 200, 2).tolist()]

    for image in range(1, images + 1):
        for _ in range(random.integers(1, most)):
            category, place = int(random.integers(classes)) + 1, box()
            objects.append((category, place, image, int(random.random() < 0.1)))
            if random.random() < 0.8:
                near = np.array(place) + random.normal(0, 0.12, 4) * [*place[2:], *place[2:]]
                other = int(random.integers(classes)) + 1
                guess = category if random.random() < 0.8 else other
                # Scores come more than once.
                for _ in range(1 + (random.random() < 0.2)):
                    found.append((guess, near.tolist(), round(float(random.beta(4, 2)), 2), image))
        for _ in range(guesses):
            category = int(random.integers(classes)) + 1
            found.append((category, box(), round(float(random.beta(1, 5)), 2), image))
    return make_truth(objects, classes, images), make_results(*found)
