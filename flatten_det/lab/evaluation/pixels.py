"""Label maps against the truth: the confusion of pixels, and what follows from it."""

from dataclasses import dataclass, field

import cv2
import numpy as np

BAND = 0.01  # of an image's diagonal: how far from a boundary its band reaches


def pixel_confusion(
    truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int = 255
) -> np.ndarray:
    """Pixels by true label (rows) and predicted label (columns): ``(classes + 1, classes + 1)`` of int64.

    ``truth`` and ``predicted`` are labels (H, W); those that are no classes have the last row and column.
    Pixels whose true label is ``ignored`` do not count.
    """
    counted = truth != ignored
    size = classes + 1
    rows, columns = (
        np.where((labels < 0) | (labels >= classes), classes, labels)
        for labels in (truth[counted].astype(np.int64), predicted[counted].astype(np.int64))
    )
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)


def class_measures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Per class ``iou``, ``accuracy`` (mmseg's Acc, which is recall), ``precision``, and true ``pixels``.

    Of :func:`pixel_confusion`. Arrays (classes,), NaN where there is nothing to divide by.
    """
    right = np.diag(confusion)[:-1].astype(float)
    pixels, predicted = confusion.sum(1)[:-1], confusion.sum(0)[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "iou": right / (pixels + predicted - right),
            "accuracy": right / pixels,
            "precision": right / predicted,
            "pixels": pixels,
        }


def boundary_band(labels: np.ndarray) -> np.ndarray:
    """Where a boundary between two labels, ignored ones among them, is near: bool (H, W).

    Near is a square whose half side is :data:`BAND` of the image's diagonal, a pixel at least.
    """
    reach = max(1, round(BAND * float(np.hypot(*labels.shape))))
    around = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    values = labels.astype(np.float32)
    return cv2.dilate(values, around) != cv2.erode(values, around)


@dataclass
class PixelCounts:
    """Counts of all images that were added."""

    classes: int
    ignored: int = 255
    confusion: np.ndarray = field(init=False)  # see pixel_confusion
    errors: int = 0  # pixels, as the following ones
    errors_near: int = 0  # within the boundary band
    near: int = 0  # that count and lie within the band
    counted: int = 0

    def __post_init__(self) -> None:
        self.confusion = np.zeros((self.classes + 1, self.classes + 1), np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> tuple[float, float]:
        """Add an image's labels (H, W); returns the share of its pixels that are wrong, and its mean IoU.

        Both are NaN for an image that is ignored as a whole.
        """
        confusion = pixel_confusion(truth, predicted, self.classes, self.ignored)
        self.confusion += confusion
        counted = truth != self.ignored
        wrong = counted & (truth != predicted)
        band = boundary_band(truth)
        self.errors += int(wrong.sum())
        self.errors_near += int((wrong & band).sum())
        self.near += int((counted & band).sum())
        total = int(counted.sum())
        self.counted += total
        if not total:
            return float("nan"), float("nan")
        ious = class_measures(confusion)["iou"]
        mean = float(np.nanmean(ious)) if not np.isnan(ious).all() else float("nan")
        return int(wrong.sum()) / total, mean

    def boundary(self) -> dict[str, float | None]:
        """Shares of the errors, and of all pixels, that lie within the boundary band."""
        return {
            "share_of_errors": self.errors_near / self.errors if self.errors else None,
            "share_of_pixels": self.near / self.counted if self.counted else None,
        }
