"""Learning rates that fall from layer to layer, from the heads down to the patch embedding."""

from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..backbones.base import DenseBackbone
from .optimizer import GroupingOptimWrapperConstructor

# MMDetection's and MMSegmentation's constructors, which know ConvNeXt, BEiT and MAE by their names. By name,
# because importing them takes seconds.
_THEIRS = ("LearningRateDecayOptimizerConstructor", "LayerDecayOptimizerConstructor")
_call_theirs = DefaultOptimWrapperConstructor.__call__


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(GroupingOptimWrapperConstructor):
    """A learning rate for each layer of the backbone, ``decay_rate`` times that of the next one.

    The options in ``paramwise_cfg`` are those of MMDetection's ``LearningRateDecayOptimizerConstructor``,
    which does the same with this package's backbones, and those of mmengine's own constructor besides:

    - ``decay_rate``: from layer to layer; what is not of the backbone keeps the optimizer's learning rate.
    - ``decay_type``: ``'layer_wise'`` (by default), a layer for each block, or ``'stage_wise'``.
    - ``num_layers``: share the blocks out to so many layers; as many as there are by default.

    Vectors, tables of positions and scales do not decay, unless ``paramwise_cfg`` says so.
    """

    def adjust(self, params: list[dict[str, Any]], model: nn.Module) -> None:
        options = self.paramwise_cfg
        rate, kind = options.get("decay_rate"), options.get("decay_type", "layer_wise")
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f"paramwise_cfg needs a decay_rate above 0, up to 1; got {rate!r}")
        if "layer_wise" not in kind and kind != "stage_wise":
            raise ValueError(f"decay_type must be 'layer_wise' or 'stage_wise'; got {kind!r}")
        exponents, not_decaying = {}, set()
        for backbone in model.modules():
            if not isinstance(backbone, DenseBackbone):
                continue
            depths = backbone.layer_depths(coarse=kind == "stage_wise")
            count, tables = max(depths.values()), backbone.no_weight_decay()
            layers = options.get("num_layers") if kind != "stage_wise" else None
            layers = count if layers is None else layers
            for name, parameter in backbone.named_parameters():
                depth = depths[name]
                layer = 1 + (depth - 1) * layers // count if depth else 0
                exponents[parameter] = layers + 1 - layer
                if name in tables:
                    not_decaying.add(parameter)
        for group in params:
            (parameter,) = group["params"]
            # mmengine gives those of custom_keys without a decay_mult the optimizer's own.
            is_told = "weight_decay" in group and ("decay_mult" in group or "lr_mult" not in group)
            if not is_told and (parameter.dim() == 1 or parameter in not_decaying):
                group["weight_decay"] = 0.0
            if parameter in exponents and self.base_lr is not None:
                group["lr"] = group.get("lr", self.base_lr) * rate ** exponents[parameter]


def decay_layers_of_our_backbones() -> None:
    """Let MMDetection's and MMSegmentation's constructors do for our backbones what they do for theirs."""
    DefaultOptimWrapperConstructor.__call__ = _call


def _call(self: DefaultOptimWrapperConstructor, model: nn.Module) -> OptimWrapper:
    is_theirs = type(self).__name__ in _THEIRS
    if not (is_theirs and any(isinstance(m, DenseBackbone) for m in model.modules())):
        return _call_theirs(self, model)
    cfg = {**self.optim_wrapper_cfg, "optimizer": self.optimizer_cfg}
    return LayerDecayOptimWrapperConstructor(cfg, self.paramwise_cfg)(model)
