"""Detections against COCO annotations: what COCOeval measures and matches, per class and as arrays."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

POSITIVE = 0.5  # the IoU from which a detection is right
KEYS = {"bbox": "bbox", "segm": "segmentation"}  # by kind of IoU: what of an annotation is compared
# AP over the thresholds of IoU, at 0.5, at 0.75; of objects below 32², to 96² and above, in pixels; recall.
MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")
IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
MAX_DETECTIONS = (100, 300, 1000)  # of a class in an image, as mmdet's CocoMetric has them


@dataclass(frozen=True)
class Matches:
    """D detections and G objects, with COCO's matches at IoU 0.5, as arrays.

    Detections of one class are together, in descending order of score, without those beyond the most that
    COCO looks at. Overlaps are with objects that count, in the same image: -1 is the number of no
    object.
    """

    images: list[Any]  # ids
    classes: int
    scores: np.ndarray  # (D,)
    labels: np.ndarray  # (D,) number of the class
    places: np.ndarray  # (D,) number of the image
    ids: np.ndarray  # (D,) number of the result that was given, from 0
    matched: np.ndarray  # (D,) number of the object that it found, or -1
    ignored: np.ndarray  # (D,) bool: it lies on a crowd, and counts neither as right nor as wrong
    own: np.ndarray  # (D, 2) largest IoU with an object of its class, and the object's number
    other: np.ndarray  # (D, 2) the same for the other classes
    confusable: np.ndarray  # (P, 3) detection, object of another class, their IoU of at least 0.5
    object_labels: np.ndarray  # (G,)
    object_places: np.ndarray  # (G,)
    object_ids: list[Any]  # G ids of annotations; crowds are none of these objects

    def counts(self) -> np.ndarray:
        """Objects of each class."""
        return np.bincount(self.object_labels, minlength=self.classes)


@dataclass(frozen=True)
class Evaluation:
    """What COCOeval measures, by class in the order of the categories asked for.

    Values are from 0 to 1, NaN for classes without objects.
    """

    measures: dict[str, np.ndarray]  # (classes,) by name in MEASURES
    recalls: np.ndarray  # (101,) the axis of the curves
    curves: np.ndarray  # (2, classes, 101) precision at IoU 0.5, and its mean over the thresholds
    matches: Matches


def evaluate_detections(
    truth: COCO,
    results: Sequence[dict[str, Any]],
    iou_type: str,
    categories: Sequence[Any] | None = None,
    images: Sequence[Any] | None = None,
    ious: Sequence[float] = IOUS,
    max_detections: Sequence[int] = MAX_DETECTIONS,
) -> Evaluation:
    """Run COCOeval.

    Args:
        truth: annotations; COCOeval notes in them which it ignores, and makes run lengths of polygons.
        results: in COCO's format, left as they are.
        iou_type: ``"bbox"`` or ``"segm"``.
        categories: ids, in the order of the result (default: all).
        images: ids of those that count (default: all).
        ious: thresholds of the means, in ascending order.
        max_detections: of a class in an image, in ascending order; AP is of 100 if this is one of them, other
            values are of the last, as in mmdet's CocoMetric.
    """
    categories = truth.getCatIds() if categories is None else list(categories)
    key = KEYS[iou_type]
    # Without boxes, the area of a mask is its own: it decides whether a detection is small.
    own = [
        {name: each[name] for name in ("image_id", "category_id", "score", key)} for each in results
    ]
    used = np.union1d(np.asarray(ious, float).reshape(-1), [POSITIVE])
    with contextlib.redirect_stdout(io.StringIO()):
        measured = COCOeval(truth, _loaded(truth, own), iou_type)
        params = measured.params
        params.catIds, params.maxDets, params.iouThrs = categories, list(max_detections), used
        params.imgIds = list(truth.getImgIds() if images is None else images)
        measured.evaluate()
        measured.accumulate()
    order = np.searchsorted(params.catIds, categories)  # COCOeval sorts them.
    thresholds = np.isin(used, ious)
    first = params.maxDets.index(100) if 100 in params.maxDets else -1
    precision = np.where(measured.eval["precision"] < 0, np.nan, measured.eval["precision"])
    recall = np.where(measured.eval["recall"] < 0, np.nan, measured.eval["recall"])
    precision, recall = precision[:, :, order], recall[:, order]
    right, exact = (
        precision[int(np.argmin(np.abs(used - x))), :, :, 0, -1] for x in (POSITIVE, 0.75)
    )
    values = (
        precision[thresholds, :, :, 0, first].mean((0, 1)),
        right.mean(0),
        exact.mean(0) if np.isclose(used, 0.75).any() else np.full(len(order), np.nan),
        *precision[thresholds][:, :, :, 1:, -1].mean((0, 1)).T,
        recall[thresholds][:, :, 0, -1].mean(0),
    )
    return Evaluation(
        measures=dict(zip(MEASURES, values, strict=True)),
        recalls=params.recThrs,
        curves=np.stack([right.T, precision[thresholds][..., 0, -1].mean(0).T]),
        matches=_matches(measured, order),
    )


def mean_of(values: np.ndarray) -> float:
    """The mean over classes that have objects; NaN if none has."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else float("nan")


def _loaded(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    if results:
        return truth.loadRes(results)
    empty = COCO()  # loadRes looks at the first result.
    empty.dataset = {**truth.dataset, "annotations": []}
    empty.createIndex()
    return empty


def _matches(measured: COCOeval, order: np.ndarray) -> Matches:
    """COCOeval's results per image and class, of objects of all sizes, as arrays."""
    params = measured.params
    images, areas = len(params.imgIds), len(params.areaRng)
    at = int(np.argmin(np.abs(params.iouThrs - POSITIVE)))
    scores: list[float] = []
    ids, matched, ignored, object_ids, blocks = [], [], [], [], [(0, 0, 0, 0)]
    for label, number in enumerate(order):
        start = number * areas * images
        for place, found in enumerate(measured.evalImgs[start : start + images]):
            if found is None:
                continue
            counted = np.flatnonzero(np.asarray(found["gtIgnore"]) == 0)
            finders = found["gtMatches"][at][counted].tolist()
            found_by = {finder: len(object_ids) + i for i, finder in enumerate(finders) if finder}
            matched += [found_by.get(id_, -1) for id_ in found["dtIds"]]
            scores += found["dtScores"]
            ids += found["dtIds"]
            ignored += found["dtIgnore"][at].tolist()
            object_ids += [found["gtIds"][index] for index in counted]
            blocks.append((label, place, len(found["dtIds"]), len(counted)))
    labels, places, counts, object_counts = np.array(blocks).T
    # Of one class together, the surest first; of equally sure ones, as COCOeval has them.
    label_of, place_of = np.repeat(labels, counts), np.repeat(places, counts)
    sequence = np.lexsort((-np.array(scores, float), label_of))
    label_of, place_of = label_of[sequence], place_of[sequence]
    numbers = np.array(ids, int)[sequence]
    objects = np.repeat(labels, object_counts), np.repeat(places, object_counts)
    return Matches(
        np.asarray(params.imgIds).tolist(),
        len(order),
        np.array(scores, float)[sequence],
        label_of,
        place_of,
        numbers - 1,  # loadRes counts from 1
        np.array(matched, int)[sequence],
        np.array(ignored, bool)[sequence],
        *_overlaps(measured, label_of, place_of, numbers, *objects, object_ids),
        *objects,
        object_ids,
    )


def _overlaps(
    measured: COCOeval,
    labels: np.ndarray,
    places: np.ndarray,
    ids: np.ndarray,
    object_labels: np.ndarray,
    object_places: np.ndarray,
    object_ids: list[Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The fields ``own``, ``other`` and ``confusable`` of :class:`Matches`."""
    key, annotations = KEYS[measured.params.iouType], measured.cocoGt.anns
    results = measured.cocoDt.anns
    best = np.tile([0.0, -1.0], (2, len(labels), 1))
    pairs = [np.zeros((0, 3))]
    count = len(measured.params.imgIds)
    for found, objects in zip(_groups(places, count), _groups(object_places, count), strict=True):
        if not (len(found) and len(objects)):
            continue
        overlaps = coco_mask.iou(
            [results[ids[number]][key] for number in found],
            [annotations[object_ids[number]][key] for number in objects],
            [0] * len(objects),
        )
        is_own = labels[found][:, None] == object_labels[objects]
        for number, masked in enumerate((overlaps * is_own, overlaps * ~is_own)):
            largest = masked.argmax(1)
            value = masked[np.arange(len(found)), largest]
            best[number, found, 0] = value
            best[number, found, 1] = np.where(value > 0, objects[largest], -1)
        rows, columns = np.nonzero(~is_own & (overlaps >= POSITIVE))
        pairs.append(np.stack([found[rows], objects[columns], overlaps[rows, columns]], 1))
    return best[0], best[1], np.concatenate(pairs)


def _groups(places: np.ndarray, count: int) -> list[np.ndarray]:
    """For each image, the numbers of what is in it, in order."""
    sequence = np.argsort(places, kind="stable")
    ends = np.searchsorted(places[sequence], np.arange(1, count))
    return np.split(sequence, ends)


def best_threshold(
    scores: np.ndarray, is_right: np.ndarray, objects: int
) -> dict[str, float] | None:
    """The score from which on detections are kept for the largest F1, with F1, precision and recall there.

    ``scores`` (D,) are in descending order, of one class, without ignored ones; ``is_right`` (D,) says which
    have found one of the ``objects``. None if none has.
    """
    if not is_right.any():
        return None
    right, found = np.cumsum(is_right), np.arange(1, len(scores) + 1)
    f1 = 2 * right / (found + objects)
    # A threshold does not part equal scores.
    f1[:-1][scores[:-1] == scores[1:]] = 0
    best = int(np.argmax(f1))
    return {
        "threshold": float(scores[best]),
        "f1": float(f1[best]),
        "precision": float(right[best] / found[best]),
        "recall": float(right[best] / objects),
    }
