"""Large images and what was found in them, small enough to be drawn."""

import cv2
import numpy as np
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from pycocotools import mask as coco_mask

# The frameworks draw with several copies of the image, and of each mask or class: 4 MP take them
# gigabytes of memory already.
MAX_PIXELS = 1 << 22
# Neither matplotlib's canvas nor a JPEG of two pictures side by side is longer than 65,535.
MAX_SIDE = 1 << 14


def shrink(
    image: np.ndarray, sample: BaseDataElement, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, BaseDataElement]:
    """Reduce an image, the annotations and the predictions to a size that can be drawn.

    Args:
        image: (H, W, 3).
        sample: of a detector or a segmentor. Masks may be tensors, COCO's RLE or mmdet's structures.
        max_pixels: the largest H times W that is left as it is.

    Returns:
        The image of at most ``max_pixels`` and :data:`MAX_SIDE`, aspect ratio kept, and a copy of the
        sample to go with it. It has no ``seg_logits`` if it is smaller, and no RLE.
    """
    height, width = image.shape[:2]
    factor = min((max_pixels / (height * width)) ** 0.5, MAX_SIDE / max(height, width), 1)
    size = (max(int(height * factor), 1), max(int(width * factor), 1))
    if factor < 1:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    shrunk = sample.clone()
    for name, value in sample.items():
        if isinstance(value, InstanceData):
            setattr(shrunk, name, _shrink_instances(value, (height, width), size))
        elif isinstance(value, PixelData) and factor < 1:
            if name == "seg_logits":
                del shrunk.seg_logits
            else:
                setattr(shrunk, name, _shrink_pixels(value, size))
    return image, shrunk


def _shrink_instances(
    found: InstanceData, shape: tuple[int, int], size: tuple[int, int]
) -> InstanceData:
    found = found.clone()
    if size != shape and "bboxes" in found:
        y_factor, x_factor = (new / old for new, old in zip(size, shape, strict=True))
        factors = found.bboxes.new_tensor([x_factor, y_factor, x_factor, y_factor])
        found.bboxes = found.bboxes * factors
    if "masks" in found and (size != shape or isinstance(found.masks, list)):
        found.masks = _shrink_masks(found.masks, size)
    return found


def _shrink_masks(masks, size: tuple[int, int]) -> torch.Tensor:
    """One after the other: all at full size would be a gigabyte for each 30 at 8192 x 4096."""
    if isinstance(masks, BitmapMasks | PolygonMasks):
        masks = masks.to_ndarray()
    shrunk = torch.zeros((len(masks), *size), dtype=torch.bool)
    for index, mask in enumerate(masks):
        whole = coco_mask.decode(mask) if isinstance(mask, dict) else _to_numpy(mask)
        shrunk[index] = torch.from_numpy(_nearest(whole, size)).bool()
    return shrunk


def _shrink_pixels(maps: PixelData, size: tuple[int, int]) -> PixelData:
    return PixelData(
        metainfo=maps.metainfo,
        **{
            name: torch.from_numpy(np.stack([_nearest(each, size) for each in _to_numpy(values)]))
            for name, values in maps.items()
        },
    )


def _nearest(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values (H, W) of any dtype at the centres of ``size``'s pixels."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)]


def _to_numpy(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else values
