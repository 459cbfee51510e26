"""The frameworks' data samples as predictions: arrays, run lengths of masks, maps of labels and segments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.structures import INSTANCE_OFFSET
from mmdet.structures.mask import encode_mask_results
from mmengine.structures import BaseDataElement, InstanceData
from PIL import Image

from ..compat.panoptic_api import VOID
from ..files.atomic import write_atomically
from ..results import Prediction, Segment
from ..results.picture import encoded
from ..results.prediction import label_type
from .engine import Predicted


def as_prediction(
    predicted: Predicted, names: Sequence[str], palette: Sequence[Sequence[int]] | None
) -> Prediction:
    """What a model gave for an image, with the names and colours of its classes."""
    image, sample, milliseconds = predicted
    fields: dict[str, Any] = {}
    if "pred_instances" in sample:
        fields |= _objects(sample.pred_instances)
    if "pred_panoptic_seg" in sample:
        fields |= _segments(sample, len(names))
    if "pred_sem_seg" in sample:
        # Those of a model with one channel are floats.
        labels = sample.pred_sem_seg.data.squeeze(0).numpy()
        fields["label_map"] = labels.astype(label_type(len(names)))
    return Prediction(
        image.source,
        tuple(map(int, sample.ori_shape[:2])),
        tuple(names),
        **fields,
        palette=palette,
        milliseconds=milliseconds,
        pixels=None if image.pixels is None else image.pixels[..., ::-1],
    )


def write_label_map(path: Path, label_map: np.ndarray, count: int) -> None:
    """Write labels (H, W) below ``count`` as a PNG of one channel, of 16 bits if need be."""
    write_png(path, label_map.astype(label_type(count)))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write pixels (H, W) or RGB (H, W, 3); the folder is made."""
    write_atomically(path, encoded(Image.fromarray(pixels)), durable=False)


def _objects(found: InstanceData) -> dict[str, Any]:
    # Most models give the best first. A stable order leaves theirs as it is.
    found = found[found.scores.argsort(descending=True, stable=True)]
    fields = {
        "boxes": found.bboxes.float().numpy().reshape(-1, 4),
        "scores": found.scores.float().numpy(),
        "labels": found.labels.numpy().astype(np.int64),
    }
    if "masks" in found:
        masks = found.masks
        rles = masks if isinstance(masks, list) else encode_mask_results(masks.numpy())
        fields["masks"] = [
            {"size": list(rle["size"]), "counts": rle["counts"].decode()} for rle in rles
        ]
    return fields


def _segments(sample: BaseDataElement, count: int) -> dict[str, Any]:
    ids = sample.pred_panoptic_seg.sem_seg.squeeze(0).numpy()
    # mmdet's ids are label + 1000 · number, and the label after the last one is void.
    ids = np.where(ids % INSTANCE_OFFSET < count, ids, VOID)
    areas = zip(*map(np.ndarray.tolist, np.unique(ids, return_counts=True)), strict=True)
    return {
        "segment_ids": ids.astype(np.int32),
        "segments": [
            Segment(id_, id_ % INSTANCE_OFFSET, area) for id_, area in areas if id_ != VOID
        ],
    }
