"""Large photographs to learn from, cut into tiles with what is seen of the objects in each."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ...cli import progress_bar
from ...errors import UserError
from ...files.atomic import write_atomically
from ...files.images import output_names, read_image
from ..doctor.faults import MASK_BROKEN, MASK_SIZE, quoted
from ..doctor.instances import mask_fault
from ..tiling import Tiling, Window
from .coco_file import CocoFile

# Part of an object that must be in a tile for it to be one there; of less, the tile has a region that is
# neither learned nor counted.
VISIBLE = 0.5


def cut_into_tiles(file: CocoFile, folder: Path, tiling: Tiling) -> dict[str, Any]:
    """Write the tiles of all images of a COCO file into a folder, as PNG.

    Returns:
        The content of the tiles' COCO file, whose file names are relative to the folder.

    Raises:
        UserError: An image or a mask cannot be read, or a tile not be written.
    """
    objects: dict[Any, list[dict]] = {}
    for annotation in file.content["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    paths = {image["id"]: str(file.images / image["file_name"]) for image in file.content["images"]}
    names = output_names(paths.values())
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with progress_bar() as progress:
        for id_, path in progress.track(paths.items(), description="Cutting images"):
            try:
                pixels = read_image(path)
            except UserError as error:
                raise UserError(f"{error}; or leave it out of {file.path}") from error
            shape = pixels.shape[:2]
            whole = [(each, _mask(each, shape, file.path)) for each in objects.get(id_, ())]
            for window in tiling.windows(*shape):
                left, top, right, bottom = window
                name = f"{names[path]}_x{left}_y{top}.png"
                _, png = cv2.imencode(".png", pixels[top:bottom, left:right])
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_atomically(folder / name, png.tobytes(), durable=False)
                size = {"width": right - left, "height": bottom - top}
                images.append({"id": len(images) + 1, "file_name": name, **size})
                for annotation, mask in whole:
                    if seen := _seen(annotation, mask, window):
                        ids = {"id": len(annotations) + 1, "image_id": len(images)}
                        annotations.append(annotation | seen | ids)
    return {**file.content, "images": images, "annotations": annotations}


def _mask(annotation: dict[str, Any], shape: tuple[int, int], path: Path) -> np.ndarray | None:
    """The pixels (H, W) of an object of an annotation file, if it has a segmentation."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    fault = mask_fault(segmentation, {"width": shape[1], "height": shape[0]})
    if fault and fault[0] in (MASK_BROKEN, MASK_SIZE):
        what = f"annotation {quoted(annotation['id'])} {fault[1]}"
        raise UserError(f"{path}: {what}: export it again, or remove the annotation")
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = coco_mask.frPyObjects(segmentation, *shape)
    if isinstance(segmentation, list):
        segmentation = coco_mask.merge(segmentation)
    return coco_mask.decode(segmentation)


def _seen(
    annotation: dict[str, Any], mask: np.ndarray | None, window: Window
) -> dict[str, Any] | None:
    """What a tile changes of an annotation; None if nothing of it is seen there."""
    left, top, right, bottom = window
    x, y, width, height = annotation["bbox"]
    begin = np.maximum([x, y], [left, top])
    sides = np.minimum([x + width, y + height], [right, bottom]) - begin
    if sides.min() <= 0:
        return None
    box, area, all_of_it = [*(begin - [left, top]), *sides], sides.prod(), width * height
    seen: dict[str, Any] = {}
    if mask is not None:
        tile = mask[top:bottom, left:right]
        area, all_of_it = tile.sum(), mask.sum()
        if area == 0:
            return None
        rle = coco_mask.encode(np.asfortranarray(tile))
        box = coco_mask.toBbox(rle)
        seen["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    if area < VISIBLE * all_of_it:
        seen["iscrowd"] = 1
    return {**seen, "bbox": [float(n) for n in box], "area": float(area)}
