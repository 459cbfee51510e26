"""Holding back part of the images for validation."""

import hashlib
from typing import Any

from ...errors import UserError
from .coco_file import CocoFile, counts


def divide(file: CocoFile, val_fraction: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide an annotation file into one for training and one for validation.

    By a hash of the images' names: always alike, and few move when images are added.

    Args:
        file: the annotations.
        val_fraction: part of the images for validation, between 0 and 1.

    Returns:
        The contents of the two files; both have all categories.

    Raises:
        UserError: A part would have no objects that count.
    """
    images = sorted(
        file.content["images"],
        key=lambda image: hashlib.sha256(image["file_name"].encode("utf-8", "replace")).digest(),
    )
    count = max(round(len(images) * val_fraction), 1)
    parts = []
    for part in (images[count:], images[:count]):
        ids = {image["id"] for image in part}
        annotations = [a for a in file.content["annotations"] if a["image_id"] in ids]
        if not any(map(counts, annotations)):
            raise UserError(
                f"{file.path}: {len(images)} images cannot be divided at --val-fraction {val_fraction} so "
                "that both parts have objects: change it, or name validation annotations by --val-ann"
            )
        kept = [image for image in file.content["images"] if image["id"] in ids]
        parts.append({**file.content, "images": kept, "annotations": annotations})
    return parts[0], parts[1]
