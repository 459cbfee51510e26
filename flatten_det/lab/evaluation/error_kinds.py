"""Kinds of errors of a detector, and what each costs: Bolya et al., "TIDE", ECCV 2020 (arXiv 2008.08115).

A detection that found no object (IoU of at least 0.5 with one of its class that no surer detection has found)
is wrong in one way, the first that holds:

- localisation: its largest IoU with an object of its class is at least 0.1, and below 0.5;
- classification: it is at least 0.5 with an object of another class;
- duplicate: it is at least 0.5 with an object of its class, which a surer detection has found;
- background: it is at most 0.1 with every object;
- both: it is from 0.1 to 0.5 with an object of another class.

An object is missed if no detection has found it, nor would have with another class or another place.
"""

from dataclasses import dataclass

import numpy as np

from .detections import POSITIVE, Matches

BACKGROUND_IOU = 0.1
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
RIGHT, UNUSED = -1, -2  # in place of a kind: no error; below the threshold, or on a crowd
_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Errors:
    """What is wrong with the detections from a score on."""

    kinds: np.ndarray  # (D,) number in KINDS, RIGHT or UNUSED
    targets: np.ndarray  # (D,) the object that it is, or would be, about, or -1
    found: np.ndarray  # (G,) bool
    missed: np.ndarray  # (G,) bool: not found, nor the target of a wrong class or place

    def counts(self) -> dict[str, int]:
        """Errors of each kind."""
        numbers = [int((self.kinds == kind).sum()) for kind in range(_MISSED)]
        return dict(zip(KINDS, [*numbers, int(self.missed.sum())], strict=True))


def find_errors(matches: Matches, threshold: float = -np.inf) -> Errors:
    """Say of each detection with at least this score whether it is right, and else what is wrong."""
    own, other = matches.own, matches.other
    largest = np.maximum(own[:, 0], other[:, 0])
    kinds = np.full(len(matches.scores), _BOTH)
    # The first that holds, written last.
    kinds[largest <= BACKGROUND_IOU] = _BACKGROUND
    kinds[own[:, 0] >= POSITIVE] = _DUPLICATE
    kinds[other[:, 0] >= POSITIVE] = _CLASSIFICATION
    kinds[(own[:, 0] >= BACKGROUND_IOU) & (own[:, 0] < POSITIVE)] = _LOCALISATION
    kinds[matches.matched >= 0] = RIGHT
    kinds[matches.ignored | (matches.scores < threshold)] = UNUSED
    targets = np.full(len(kinds), -1)
    for kind, objects in (
        (RIGHT, matches.matched),
        (_CLASSIFICATION, other[:, 1]),
        (_LOCALISATION, own[:, 1]),
        (_DUPLICATE, own[:, 1]),
        (_BOTH, other[:, 1]),
    ):
        targets[kinds == kind] = objects[kinds == kind].astype(int)
    found = np.zeros(len(matches.object_ids), bool)
    found[targets[kinds == RIGHT]] = True
    missed = ~found
    missed[targets[(kinds == _CLASSIFICATION) | (kinds == _LOCALISATION)]] = False
    return Errors(kinds, targets, found, missed)


def average_precision(scores: np.ndarray, is_right: np.ndarray, objects: int) -> float:
    """AP of one class at one IoU, over 101 recalls as COCOeval has it; 1 where there are no objects to find.

    ``scores`` (D,) are in any order; ``is_right`` (D,) says which have found an object.
    """
    if objects == 0:
        return 1.0
    if not len(scores):
        return 0.0
    right = np.cumsum(is_right[np.argsort(-scores, kind="stable")])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(right / objects, _RECALLS)
    return float(np.append(precision, 0.0)[np.minimum(places, len(precision))].mean())


def gains(matches: Matches, errors: Errors | None = None) -> tuple[float, dict[str, float]]:
    """AP50, and what it would gain if all errors of a kind, and no others, were mended (TIDE's dAP).

    A wrong class or place is put right, and the detection dropped if its object is found, or by a surer one;
    other wrong detections are dropped; missed objects are not asked for. NaN without objects.
    """
    errors = find_errors(matches) if errors is None else errors
    base = _mean_ap(matches, errors.kinds, matches.labels, matches.counts())
    if np.isnan(base):
        return base, dict.fromkeys(KINDS, base)
    mended = {}
    for number, kind in enumerate(KINDS[:-1]):
        kinds, labels = errors.kinds.copy(), matches.labels.copy()
        wrong = np.flatnonzero(kinds == number)
        kinds[wrong] = UNUSED
        if number in (_CLASSIFICATION, _LOCALISATION):
            wrong = wrong[~errors.found[errors.targets[wrong]]]
            wrong = wrong[np.argsort(-matches.scores[wrong], kind="stable")]
            objects, first = np.unique(errors.targets[wrong], return_index=True)
            kinds[wrong[first]] = RIGHT
            labels[wrong[first]] = matches.object_labels[objects]
        mended[kind] = _mean_ap(matches, kinds, labels, matches.counts())
    left = np.bincount(matches.object_labels[~errors.missed], minlength=matches.classes)
    mended[KINDS[_MISSED]] = _mean_ap(matches, errors.kinds, matches.labels, left)
    return base, {kind: value - base for kind, value in mended.items()}


def _mean_ap(matches: Matches, kinds: np.ndarray, labels: np.ndarray, objects: np.ndarray) -> float:
    """AP50 over the classes that have objects, of ``objects`` of each."""
    used = np.flatnonzero(kinds != UNUSED)
    used = used[np.argsort(labels[used], kind="stable")]
    starts = np.searchsorted(labels[used], np.arange(matches.classes + 1))
    values = []
    for label in np.flatnonzero(matches.counts()):
        own = used[starts[label] : starts[label + 1]]
        values.append(average_precision(matches.scores[own], kinds[own] == RIGHT, objects[label]))
    return float(np.mean(values)) if values else float("nan")


def confusion_matrix(matches: Matches, errors: Errors) -> np.ndarray:
    """Objects by class (rows) and detections by class (columns); the last of both is the background.

    Objects that were found stand on the diagonal. The others belong to the surest detection that found no
    object and overlaps them by at least 0.5, whatever its class, or to the background, as do all other
    detections, duplicates among them. ``(classes + 1, classes + 1)`` of int.
    """
    size = matches.classes + 1
    free_objects = ~errors.found
    free = (errors.kinds != RIGHT) & (errors.kinds != UNUSED)
    right = matches.labels[errors.kinds == RIGHT]
    cells = [np.stack([right, right])]
    pairs = matches.confusable
    for number in np.lexsort((-pairs[:, 2], -matches.scores[pairs[:, 0].astype(int)])):
        detection, target = pairs[number, :2].astype(int)
        if free[detection] and free_objects[target]:
            free[detection] = free_objects[target] = False
            cells.append([[matches.object_labels[target]], [matches.labels[detection]]])
    missed, wrong = matches.object_labels[free_objects], matches.labels[free]
    cells.append(np.stack([missed, np.full(len(missed), matches.classes)]))
    cells.append(np.stack([np.full(len(wrong), matches.classes), wrong]))
    rows, columns = np.concatenate(cells, axis=1).astype(int)
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
