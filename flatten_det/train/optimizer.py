"""Optimizers with few parameter groups, and learning rates that fall from layer to layer."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch import nn

from ..backbones.base import DenseBackbone
from ..errors import UserError

# Arguments of PyTorch's optimizers that say how to compute, not what.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# What mmengine's schedulers store for every parameter group.
_SCHEDULED = ("base_values", "_last_value", "min_values")


class GroupingOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor with a parameter group per setting, where that has one per parameter.

    Optimizers of PyTorch compute one group after the other, hundreds of them for a detector with
    ``paramwise_cfg``. Groups of equal settings become one, in the place of the first, and the optimizer is
    told to compute a group as a whole, unless its config has one of ``foreach``, ``fused``, ``capturable``
    and ``differentiable``. Arguments are those of mmengine's.

    Instead of a line for every parameter, it logs one for every group, with the names in one of level DEBUG.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Build the optimizer and its wrapper."""
        implementation = _implementation(self.optimizer_cfg, list(model.parameters()))
        self.optimizer_cfg = {**implementation, **self.optimizer_cfg}
        wrapper = super().__call__(model)
        if "fused" in implementation:
            wrapper.optimizer.register_step_pre_hook(_lay_out_alike)
        return wrapper

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = "",
        is_dcn_module: bool | None = None,
    ) -> None:
        """Add a module's parameters, and those of the modules in it, to the list of groups."""
        if prefix:  # A module in the model, for which mmengine's method calls itself.
            super().add_params(params, module, prefix, is_dcn_module)
            return
        with _warnings_only():
            super().add_params(params, module, prefix, is_dcn_module)
        self.adjust(params, module)
        parameters = [parameter for group in params for parameter in group["params"]]
        # PyTorch refuses a parameter that is there twice; within one group it would only warn.
        if len(set(parameters)) == len(parameters):
            params[:] = _merge(params)
        names = {parameter: name for name, parameter in module.named_parameters()}
        for number, group in enumerate(params):
            settings = [f"{key}={value}" for key, value in _settings(group).items()]
            print_log(
                f"optimizer group {number}: {len(group['params'])} parameters, "
                f"{', '.join(settings) or 'as the optimizer has it'}",
                logger="current",
            )
            members = ", ".join(names[parameter] for parameter in group["params"])
            print_log(f"optimizer group {number}: {members}", "current", logging.DEBUG)

    def adjust(self, params: list[dict[str, Any]], model: nn.Module) -> None:
        """Change the settings of the groups, which are of one parameter each."""


def _implementation(
    optimizer_cfg: dict[str, Any], parameters: Sequence[nn.Parameter]
) -> dict[str, bool]:
    """Arguments by which an optimizer of PyTorch computes all parameters of a group at once."""
    kind = optimizer_cfg["type"]
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    if any(name in optimizer_cfg for name in _IMPLEMENTATION):
        return {}
    devices = {parameter.device.type for parameter in parameters}
    # SGD has a fused kernel too, but one that refuses the sparse gradients which its others take.
    has_safe_fused = kind in (torch.optim.Adam, torch.optim.AdamW) and devices <= {"cpu", "cuda"}
    if has_safe_fused and all(map(_is_dense, parameters)):
        return {"fused": True}
    is_pytorchs = getattr(kind, "__module__", "").startswith("torch.optim.")
    if devices == {"cpu"} and is_pytorchs and "foreach" in inspect.signature(kind).parameters:
        return {"foreach": True}
    return {}  # On a GPU, PyTorch chooses foreach by itself.


def _is_dense(parameter: nn.Parameter) -> bool:
    """Whether the numbers fill their memory, in any order of the dimensions; else a copy is laid out anew."""
    return torch.empty_like(parameter).stride() == parameter.stride()


def _lay_out_alike(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Lay out gradients and states in memory as their parameters are, which fused kernels rely on.

    Nearly all are. Others come with a checkpoint of a model in another memory format, for example. On CUDA
    they are an error, but on the CPU the result is wrong, without one (PyTorch 2.15).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            parameter.grad = _laid_out_like(parameter, parameter.grad)
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                state[key] = _laid_out_like(parameter, value)


def _laid_out_like(parameter: nn.Parameter, value: Any) -> Any:
    """A tensor of the parameter's shape with the parameter's strides; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    if value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _merge(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One group for all that have the same settings, in the order of the first ones."""
    merged: list[dict[str, Any]] = []
    for group in groups:
        for other in merged:
            if _settings(other) == _settings(group):
                other["params"] += group["params"]
                break
        else:
            merged.append({**group, "params": list(group["params"])})
    return merged


@contextmanager
def _warnings_only() -> Iterator[None]:
    """Keep the logger from anything below a warning."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def few_parameter_groups() -> Iterator[None]:
    """Let configs that name no constructor have :class:`GroupingOptimWrapperConstructor`.

    Not by a changed config, as that is stored beside the results, for tools without flatten_det.
    """
    name = DefaultOptimWrapperConstructor.__name__
    register = OPTIM_WRAPPER_CONSTRUCTORS.register_module
    register(name=name, module=GroupingOptimWrapperConstructor, force=True)
    try:
        yield
    finally:
        register(name=name, module=DefaultOptimWrapperConstructor, force=True)


def fit_saved_optimizer(
    checkpoint: dict[str, Any], wrapper: OptimWrapper, parameters: Sequence[nn.Parameter]
) -> None:
    """Make a checkpoint's optimizer and schedulers fit those of the run that goes on from it.

    - Of a run with one group per parameter, as mmengine makes them, the groups become those of
      :class:`GroupingOptimWrapperConstructor`. All values stay as they are.
    - How to compute is for this run to say, perhaps on another device.

    Args:
        checkpoint: What mmengine has saved; changed in place.
        wrapper: That of the new run.
        parameters: All parameters of the model, in its order.

    Raises:
        UserError: Parameters that are in one group now had different settings.
    """
    saved, now = checkpoint["optimizer"], wrapper.optimizer.param_groups
    groups = saved["param_groups"]
    if (
        len(groups) == sum(len(group["params"]) for group in now) != len(now)
        and all(len(group["params"]) == 1 for group in groups)
    ):  # fmt: skip
        position = {parameter: number for number, parameter in enumerate(parameters)}
        _merge_saved(checkpoint, [[position[p] for p in group["params"]] for group in now])
        groups = saved["param_groups"]
    for group, current in zip(groups, now, strict=False):  # Of other lengths: PyTorch says so.
        group.update({key: current[key] for key in _IMPLEMENTATION if key in current})


def _merge_saved(checkpoint: dict[str, Any], positions: list[list[int]]) -> None:
    """Merge groups of one parameter each.

    Args:
        checkpoint: What mmengine has saved; changed in place.
        positions: For each new group, where its parameters are among those of the model.
    """
    saved = checkpoint["optimizer"]
    groups = saved["param_groups"]
    # The saved groups were in the model's order, without parameters that are not trained.
    places = sorted(place for group in positions for place in group)
    rank = {place: number for number, place in enumerate(places)}
    members = [[rank[place] for place in group] for group in positions]
    state, merged = {}, []
    for numbers in members:
        first = _what_to_compute(groups[numbers[0]])
        for number in numbers:
            if (other := _what_to_compute(groups[number])) != first:
                differ = sorted(key for key in first | other if first.get(key) != other.get(key))
                raise UserError(
                    "the checkpoint cannot be resumed: its optimizer has different "
                    f"{' and '.join(differ)} for parameters that the config treats alike: use "
                    "optim_wrapper.paramwise_cfg of the interrupted run, or start from the weights "
                    "alone with --cfg-options load_from=... instead of --resume"
                )
        start = sum(len(group["params"]) for group in merged)
        for new, number in enumerate(numbers, start):
            (old,) = groups[number]["params"]
            if old in saved["state"]:
                state[new] = saved["state"][old]
        new_numbers = list(range(start, start + len(numbers)))
        merged.append({**groups[numbers[0]], "params": new_numbers})
    saved.update(state=state, param_groups=merged)
    for scheduler in checkpoint.get("param_schedulers", []):
        for key in _SCHEDULED:
            if key in scheduler:
                values = scheduler[key]
                # After those of the groups, mmengine has the optimizer's own.
                scheduler[key] = [values[m[0]] for m in members] + values[len(groups) :]


def _what_to_compute(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in _settings(group).items() if k not in _IMPLEMENTATION}


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
