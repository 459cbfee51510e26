"""What a training makes of the numbers in a semantic label map."""

from dataclasses import dataclass
from typing import Any

import numpy as np

# MMSegmentation reads 8 bits, and writes this for what it leaves out, whatever ignore_index is.
_LEFT_OUT = 255


@dataclass(frozen=True)
class LabelRules:
    """How a data set of MMSegmentation reads its label maps.

    Attributes:
        image_suffix: how the names of images end.
        label_suffix: how the names of label maps end.
        ignore_index: the label of pixels that do not count.
        reduce_zero_label: 0 does not count, and all others are lowered by one.
        new_labels: pairs of a stored label and the one that a choice of classes makes of it.
    """

    image_suffix: str
    label_suffix: str
    ignore_index: int
    reduce_zero_label: bool
    new_labels: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, dataset: Any) -> "LabelRules":
        """The rules of a ``BaseSegDataset``."""
        return cls(
            dataset.img_suffix,
            dataset.seg_map_suffix,
            dataset.ignore_index,
            bool(dataset.reduce_zero_label),
            tuple((dataset.label_map or {}).items()),
        )

    def trained(self) -> np.ndarray:
        """The label ``(256,)`` that a training sees for each stored one."""
        labels = np.arange(256)
        if self.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == _LEFT_OUT), _LEFT_OUT, labels - 1)
        chosen = labels.copy()
        for old, new in self.new_labels:
            chosen[labels == old] = new
        return chosen

    @property
    def changes_labels(self) -> bool:
        """Whether a training sees other labels than those that are stored."""
        return bool(self.reduce_zero_label or self.new_labels)

    def ignored(self) -> set[int]:
        """Labels of a training that do not count."""
        return {self.ignore_index, _LEFT_OUT} if self.changes_labels else {self.ignore_index}
