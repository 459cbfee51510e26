"""Fine-tuning: weights of another model, frozen stages, averages, the best checkpoint, an early end."""

from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ..config import type_name
from ..errors import UserError, listed
from ..files.checkpoints import check_checkpoint, unwrapped

# Of the frameworks' evaluators: what they call the number that models are compared by.
_METRICS = {
    "CocoMetric": "coco/{}_mAP",
    "CocoPanopticMetric": "coco_panoptic/PQ",
    "IoUMetric": "mIoU",
    "CityscapesMetric": "averageScore",
}


def main_metric(cfg: Config) -> str:
    """The metric that a config's models are compared by: ``coco/segm_mAP``, ``mIoU`` and the like.

    A UserError if the config has no evaluator, or none of the known ones.
    """
    evaluators = cfg.get("val_evaluator") or []
    for evaluator in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if metric := _METRICS.get(type_name(evaluator)):
            kinds = evaluator.get("metric", "bbox")
            return metric.format("segm" if "segm" in kinds else "bbox")
    raise UserError(
        f"config file {cfg.filename}: which of its metrics says what is best is not known: name it, as in "
        "--save-best coco/bbox_mAP"
    )


def fine_tune(
    cfg: Config,
    weights: str | None = None,
    freeze: int | None = None,
    ema: bool = False,
    best: str | None = None,
    patience: int | None = None,
) -> list[Hook]:
    """Have a training start from another model; returns the hooks that it needs.

    Args:
        cfg: of the training; it is changed.
        weights: a checkpoint, of which is taken what fits.
        freeze: the first stages of the backbone to keep, with what comes before them, as they are.
        ema: evaluate and save an exponential moving average of the weights.
        best: keep the checkpoint with the highest value of this metric, as ``best_*.pth``; ``"auto"``: by
            the :func:`main_metric`.
        patience: end after so many validations in a row that are not better, by the same metric.

    Raises:
        UserError: The checkpoint is not there, or cannot be read; or the config has no backbone or metric.
    """
    hooks: list[Hook] = []
    if weights:
        check_checkpoint(weights)
        cfg.load_from, cfg.resume = weights, False
        if "backbone" in cfg.model and cfg.model.backbone.get("init_cfg"):
            cfg.model.backbone.init_cfg = None  # The checkpoint has other weights for it.
        hooks.append(TakeWhatFitsHook(weights))
    if freeze is not None:
        if "backbone" not in cfg.model:
            raise UserError(f"config file {cfg.filename}: --freeze needs a model with a backbone")
        cfg.model.backbone.frozen_stages = freeze
    if ema:  # With RTMDet's and timm's momentum.
        average = dict(type="EMAHook", ema_type="mmdet.ExpMomentumEMA", momentum=2e-4)
        average |= dict(update_buffers=True, priority=49)
        cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), average]
    if best or patience:
        metric = main_metric(cfg) if best in (None, "auto") else best
        cfg.default_hooks.checkpoint.update(save_best=metric, rule="greater")
        if patience:
            hooks.append(StopEarlyHook(metric, patience))
    return hooks


class TakeWhatFitsHook(Hook):
    """Leaves out of a loaded checkpoint what does not fit the model, such as a head for other classes."""

    priority = "VERY_HIGH"  # Before averages are made of the weights.

    def __init__(self, path: str) -> None:
        self._path = path

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Keep what fits, and say once what is left out and what begins with random weights.

        A UserError if no weight of the backbone fits.
        """
        model = unwrapped(runner.model)
        own, state = model.state_dict(), checkpoint.get("state_dict", checkpoint)
        state = {name.removeprefix("module."): value for name, value in state.items()}
        fits = {
            name: value
            for name, value in state.items()
            if name in own and getattr(value, "shape", None) == own[name].shape
        }
        if not any(name.startswith("backbone.") for name in fits):
            raise UserError(
                f"--weights {self._path}: none of its {len(state)} entries fits the backbone of the config: "
                "choose the config that it was trained with; for a classification checkpoint use "
                "--cfg-options model.backbone.init_cfg.checkpoint=..."
            )
        new = sorted({_part(name) for name in own.keys() - fits.keys()})
        unused = sorted({_part(name) for name in state.keys() - fits.keys()})
        if new or unused:
            runner.logger.warning(
                f"{self._path}: {len(fits)} of the model's {len(own)} weights are taken"
                + (f"; random: {listed(new, 6)}" if new else "")
                + (f"; left out: {listed(unused, 6)}" if unused else "")
            )
        checkpoint["state_dict"] = fits


def _part(name: str) -> str:
    """The layer that a weight belongs to."""
    return name.rpartition(".")[0] or name


class StopEarlyHook(Hook):
    """Ends a training after so many validations without a better one; after a resumption too.

    mmengine's EarlyStoppingHook begins to count anew when a training is resumed.

    Args:
        metric: higher is better.
        patience: validations in a row that are not better than one before.
    """

    def __init__(self, metric: str, patience: int) -> None:
        self._metric, self._patience = metric, patience

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """End the training if the time has come; a UserError if the validation has no such metric."""
        if self._metric not in (metrics or {}):
            raise UserError(
                f"--early-stopping: there is no metric {self._metric}, only {listed(metrics or {}, 10)}: "
                "name one by --save-best"
            )
        # Of the message hub, which checkpoints keep.
        values = runner.message_hub.get_scalar(f"val/{self._metric}").data[0]
        values = np.nan_to_num(values, nan=-np.inf)  # Which would be the best for ever.
        since = len(values) - 1 - int(values.argmax())
        if since >= self._patience:
            runner.train_loop.stop_training = True
            runner.logger.warning(
                f"the training ends early: {since} validations in a row are not better than "
                f"{self._metric} {values.max():.4g}"
            )
