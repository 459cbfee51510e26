"""The part of ``panopticapi`` that MMDetection needs, under that name where it is not installed.

Its authors publish it by git only, and the copies on package indexes refuse NumPy 2.
``flatten_det_finders`` lets Python find this file as ``panopticapi``, ``panopticapi.utils`` and
``panopticapi.evaluation``.

Panoptic masks are PNG files whose colours are segment ids. The quality of predictions is PQ (Kirillov et
al., "Panoptic Segmentation", CVPR 2019, equation 1). With TP the pairs of an annotated and a predicted
segment whose IoU is above one half::

    PQ = Σ_TP IoU / (|TP| + |FP|/2 + |FN|/2) = SQ · RQ
    SQ = Σ_TP IoU / |TP|
    RQ = |TP| / (|TP| + |FP|/2 + |FN|/2)
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_BASE = 256


def rgb2id(color: np.ndarray | Sequence[int]) -> np.ndarray | int:
    """int32 ids ``(H, W)`` of an RGB image ``(H, W, 3)``, or that of one colour: ``R + 256 G + 256² B``."""
    if isinstance(color, np.ndarray) and color.ndim == 3:
        red, green, blue = np.moveaxis(color.astype(np.int32), -1, 0)
    else:
        red, green, blue = map(int, color)
    return red + _BASE * (green + _BASE * blue)


def id2rgb(id_map: np.ndarray | int) -> np.ndarray | list[int]:
    """uint8 RGB ``(..., 3)`` of ids ``(...)`` from 0 to 256³ - 1, or the colour of one id."""
    is_map = isinstance(id_map, np.ndarray)
    ids = id_map.astype(np.int64) if is_map else int(id_map)
    channels = [ids // _BASE**power % _BASE for power in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8) if is_map else channels


# A pair of ids as one number: annotated · OFFSET + predicted. Ids are three bytes.
OFFSET = 256**3
# The id of pixels without a segment.
VOID = 0


@dataclass
class PQStatCat:
    """Counts of one category: the sum of the matches' IoU, and TP, FP, FN."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __iadd__(self, other: "PQStatCat") -> "PQStatCat":
        self.iou += other.iou
        self.tp += other.tp
        self.fp += other.fp
        self.fn += other.fn
        return self

    def quality(self) -> dict[str, float] | None:
        """PQ, SQ and RQ, or None where there is no segment, neither annotated nor predicted."""
        segments = self.tp + self.fp / 2 + self.fn / 2
        if not segments:
            return None
        return {
            "pq": self.iou / segments,
            "sq": self.iou / self.tp if self.tp else 0.0,
            "rq": self.tp / segments,
        }


@dataclass
class PQStat:
    """Counts per category id; those of several images or processes add up."""

    pq_per_cat: dict[int, PQStatCat] = field(default_factory=lambda: defaultdict(PQStatCat))

    def __getitem__(self, category: int) -> PQStatCat:
        return self.pq_per_cat[category]

    def __iadd__(self, other: "PQStat") -> "PQStat":
        for category, counts in other.pq_per_cat.items():
            self.pq_per_cat[category] += counts
        return self

    def pq_average(
        self, categories: Mapping[int, Mapping[str, Any]], isthing: bool | None
    ) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
        """Means over the categories that occur.

        Args:
            categories: id -> record with ``isthing`` (0 or 1).
            isthing: things only, stuff only, or None for both.

        Returns:
            ``pq``, ``sq``, ``rq`` (NaN if no category occurs) and ``n``, the number of categories; and
            the three of each category, 0 where it does not occur.
        """
        chosen = [
            id_
            for id_, category in categories.items()
            if isthing is None or (category["isthing"] == 1) == isthing
        ]
        qualities = {id_: self[id_].quality() for id_ in chosen}
        occurring = [quality for quality in qualities.values() if quality]
        names = ("pq", "sq", "rq")
        mean = dict.fromkeys(names, float("nan"))
        if occurring:
            mean = {name: sum(q[name] for q in occurring) / len(occurring) for name in names}
        each = {id_: quality or dict.fromkeys(names, 0.0) for id_, quality in qualities.items()}
        return mean | {"n": len(occurring)}, each
