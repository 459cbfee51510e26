"""Annotations of rendered images: COCO's instances, COCO's panoptic segments, semantic classes."""

from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

from .options import CLASSES
from .render import ShapesImage

# In COCO's files the classes count from 1; the background is the stuff category after them.
BACKGROUND_ID = len(CLASSES) + 1


def semantic_map(drawn: ShapesImage) -> np.ndarray:
    """Class of every pixel, 0 for the background, uint8 (H, W)."""
    classes = np.concatenate([drawn.labels + 1, [0]]).astype(np.uint8)  # Owner -1 is the last.
    return classes[drawn.owner]


def instances(drawn: ShapesImage) -> list[dict]:
    """Annotations of one image without their ids, with run lengths as masks."""
    annotations = []
    for i, label in enumerate(drawn.labels.tolist()):
        mask = coco_mask.encode(np.asfortranarray(drawn.owner == i, np.uint8))
        annotations.append(
            {
                "category_id": label + 1,
                **_extent(mask),
                "iscrowd": 0,
                "segmentation": {"size": mask["size"], "counts": mask["counts"].decode()},
            }
        )
    return annotations


def panoptic_map(drawn: ShapesImage) -> np.ndarray:
    """Segment of every pixel, int (H, W): objects from 1 on, then the background. No pixel is void."""
    number = len(drawn.labels)
    return np.where(drawn.owner < 0, number, drawn.owner) + 1


def segments(drawn: ShapesImage) -> list[dict]:
    """``segments_info`` of one image: the segments of :func:`panoptic_map`."""
    segment_of = panoptic_map(drawn)
    categories = [*(drawn.labels + 1).tolist(), BACKGROUND_ID]
    found = []
    for id_, category in enumerate(categories, start=1):
        mask = coco_mask.encode(np.asfortranarray(segment_of == id_, np.uint8))
        found.append({"id": id_, "category_id": category, **_extent(mask), "iscrowd": 0})
    return [segment for segment in found if segment["area"]]


def _extent(mask: dict) -> dict:
    return {"bbox": coco_mask.toBbox(mask).tolist(), "area": int(coco_mask.area(mask))}


def instances_json(of_images: Sequence[list[dict]], sizes: Sequence[tuple[int, int]]) -> dict:
    """Content of ``instances_{split}.json``; ``sizes`` are ``(height, width)`` of the images."""
    flat = [{"image_id": i, **one} for i, of_image in enumerate(of_images) for one in of_image]
    return _coco_json(
        sizes,
        # pycocotools takes a match with annotation 0 for no match, so ids start at 1.
        annotations=[{"id": i, **annotation} for i, annotation in enumerate(flat, start=1)],
        categories=_categories(),
    )


def panoptic_json(of_images: Sequence[list[dict]], sizes: Sequence[tuple[int, int]]) -> dict:
    """Content of ``panoptic_{split}.json``; ``sizes`` are ``(height, width)`` of the images."""
    background = {"id": BACKGROUND_ID, "name": "background", "supercategory": "background"}
    return _coco_json(
        sizes,
        annotations=[
            {"image_id": i, "file_name": f"{i:06}.png", "segments_info": of_image}
            for i, of_image in enumerate(of_images)
        ],
        categories=[
            *({**category, "isthing": 1} for category in _categories()),
            {**background, "isthing": 0},
        ],
    )


def _categories() -> list[dict]:
    return [
        {"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, start=1)
    ]


def _coco_json(sizes: Sequence[tuple[int, int]], **content: list[dict]) -> dict:
    return {
        "info": {"description": "Shapes, rendered by flatten_det"},
        "licenses": [],
        "images": [
            {"id": i, "file_name": f"{i:06}.jpg", "height": height, "width": width}
            for i, (height, width) in enumerate(sizes)
        ],
        **content,
    }
