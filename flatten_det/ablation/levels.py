"""What the metric of the long-range task is for models that do not see what they need."""

from math import comb

from mmengine.config import Config

from ..datasets.shapes.legend import guessing_iou


def known_levels(cfg: Config, metric: str) -> dict[str, float]:
    """Levels of the mean IoU in per cent, by name; none for another metric or data without a legend.

    - ``guessing``: the legend is not seen.
    - ``legend unordered``: it is known how many columns of the legend have which class, as even weights
      over all tokens would tell, but not which; only for two classes.

    Objects and background are taken to be told apart exactly.
    """
    legend = cfg.val_dataloader.dataset.get("legend")
    if metric != "mIoU" or not legend:
        return {}
    columns, classes = legend
    levels = {"guessing": _with_background(guessing_iou(classes), classes)}
    if classes == 2:
        right = unordered_accuracy(columns)
        levels["legend unordered"] = _with_background(right / (2 - right), classes)
    return levels


def unordered_accuracy(columns: int) -> float:
    """Share of objects that have the class of most columns of the legend, of two classes."""
    return sum(comb(columns, k) * max(k, columns - k) for k in range(columns + 1)) / (
        columns * 2**columns
    )


def _with_background(iou: float, classes: int) -> float:
    return 100 * (1 + classes * iou) / (classes + 1)
