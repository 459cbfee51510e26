"""What the metric of the long-range task is for models that do not see what they need."""

from math import comb
from statistics import mean

from mmengine.config import Config

from ...data.shapes.options import ShapesOptions
from ...data.shapes.render import guessing_iou


def known_levels(cfg: Config, metric: str) -> dict[str, float]:
    """Levels of the mean IoU in per cent, by name; none for another metric or data without a legend.

    - ``guessing``: the legend is not seen.
    - ``legend unordered``: it is known how many cells of the legend have which class, as even weights over
      all tokens would tell, but not which; only for two classes.

    Objects and background are taken to be told apart exactly.
    """
    data = cfg.val_dataloader.dataset
    if metric != "mIoU" or not data.get("legend"):
        return {}
    classes = data.get("legend_classes", ShapesOptions.legend_classes)
    levels = {"guessing": _with_background(guessing_iou(classes), classes)}
    if classes == 2:
        least, most = data.legend
        right = mean(unordered_accuracy(cells) for cells in range(least, most + 1))
        levels["legend unordered"] = _with_background(right / (2 - right), classes)
    return levels


def unordered_accuracy(cells: int) -> float:
    """Share of objects that have the class of most cells of the legend, of two classes."""
    return sum(comb(cells, k) * max(k, cells - k) for k in range(cells + 1)) / (cells * 2**cells)


def _with_background(iou: float, classes: int) -> float:
    return 100 * (1 + classes * iou) / (classes + 1)
