"""Predictions as files: JSON and label maps, in the image's own pixels."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures import INSTANCE_OFFSET
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement
from PIL import Image

from ..compat.panoptic_api import VOID, id2rgb
from ..files.atomic import write_atomically


def save_prediction(
    sample: BaseDataElement, classes: Sequence[str], path: Path, score_thr: float
) -> None:
    """Write a prediction to ``<path>.json``, and a map of labels or of panoptic ids to ``<path>.png``.

    The panoptic map is COCO's: RGB whose colours are segment ids (R + 256 G + 256² B), 0 for void.

    Args:
        sample: Prediction of a detector or a segmentor.
        classes: Class names by label.
        path: Target without suffix; its folder is made.
        score_thr: Detections below it are left out.
    """
    height, width = sample.ori_shape
    content: dict[str, Any] = {"image": str(sample.img_path), "height": height, "width": width}
    file = path.with_name(f"{path.name}.png")
    if "pred_instances" in sample:
        content |= detections(sample, classes, score_thr)
    if "pred_panoptic_seg" in sample:
        ids, found = segments(sample, classes)
        write_png(file, id2rgb(ids))
        content |= {"panoptic_map": file.name, "segments": found}
    if "pred_sem_seg" in sample:
        # Those of a model with one channel are floats.
        label_map = sample.pred_sem_seg.data.squeeze(0).numpy().astype(np.uint16)
        write_label_map(file, label_map, len(classes))
        content |= {"label_map": file.name, "classes": class_shares(label_map, classes)}
    text = json.dumps(content)
    write_atomically(path.with_name(f"{path.name}.json"), text.encode(), durable=False)


def write_label_map(path: Path, label_map: np.ndarray, count: int) -> None:
    """Write labels (H, W) below ``count`` as a PNG of one channel, of 16 bits if need be."""
    write_png(path, label_map.astype(np.uint8 if count <= 256 else np.uint16))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W) or RGB (H, W, 3); the folder is made."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "png")
    write_atomically(path, content.getvalue(), durable=False)


def detections(
    sample: BaseDataElement, classes: Sequence[str], score_thr: float
) -> dict[str, list]:
    """Parallel lists, one entry per detection, named as in mmdet's inferencer.

    ``labels``, ``class_names``, ``scores``, ``bboxes`` (x1, y1, x2, y2 in pixels) and, from instance
    segmentation, ``masks`` (COCO RLE of the image's size).
    """
    found = sample.pred_instances
    found = found[found.scores >= score_thr]
    labels = found.labels.tolist()
    content = {
        "labels": labels,
        "class_names": [classes[label] for label in labels],
        "scores": found.scores.tolist(),
        "bboxes": found.bboxes.tolist(),
    }
    if "masks" in found:
        masks = found.masks
        rles = masks if isinstance(masks, list) else encode_mask_results(masks.numpy())
        content["masks"] = [{"size": rle["size"], "counts": rle["counts"].decode()} for rle in rles]
    return content


def segments(
    sample: BaseDataElement, classes: Sequence[str]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segment ids (H, W), 0 for void, and ``id``, ``label``, ``class_name`` and ``area`` of each segment."""
    ids = sample.pred_panoptic_seg.sem_seg.squeeze(0).numpy()
    # mmdet's ids are label + 1000 · number, and the label after the last one is void.
    ids = np.where(ids % INSTANCE_OFFSET < len(classes), ids, VOID)
    found = []
    for id_, area in zip(*map(np.ndarray.tolist, np.unique(ids, return_counts=True)), strict=True):
        if id_ != VOID:
            label = id_ % INSTANCE_OFFSET
            found.append({"id": id_, "label": label, "class_name": classes[label], "area": area})
    return ids, found


def class_shares(label_map: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Every class with its label and its share of the pixels (0 to 1)."""
    counts = np.bincount(label_map.ravel(), minlength=len(classes))
    return [
        {"label": label, "name": name, "share": counts[label].item() / label_map.size}
        for label, name in enumerate(classes)
    ]
