"""Optimizers: mixed precision, few parameter groups, learning rates that fall from layer to layer."""

import inspect
import itertools
import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.optim import (
    AmpOptimWrapper,
    BaseOptimWrapper,
    DefaultOptimWrapperConstructor,
    OptimWrapper,
)
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..backbones.base import DenseBackbone
from ..config import type_name
from ..errors import UserError

# What the command line calls them, and what mmengine does.
AMP_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
# Arguments of PyTorch's optimizers that say how to compute, not what.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")
# What mmengine's schedulers store for every parameter group.
_SCHEDULED = ("base_values", "_last_value", "min_values")


def enable_amp(cfg: Config, dtype: str | None = None) -> None:
    """Have a config's ``optim_wrapper`` train in mixed precision, fp16 with a loss scale.

    ``dtype`` is ``'fp16'`` or ``'bf16'``. None: what the config says, an ``AmpOptimWrapper`` without a dtype
    fp16 on CUDA, else bf16, or fp16 on a GPU that has no bf16.
    """
    wrapper = cfg.optim_wrapper
    kind = type_name(wrapper) or "OptimWrapper"
    if kind not in ("OptimWrapper", "AmpOptimWrapper", "CPUAmpOptimWrapper"):
        raise UserError(f"--amp works with OptimWrapper, not with this config's {kind}: drop --amp")
    on_cuda = torch.cuda.is_available()
    says_nothing = kind != "AmpOptimWrapper" and not {"dtype", "loss_scale"} & wrapper.keys()
    if dtype is None and says_nothing and on_cuda:
        # Emulated bf16, which torch counts in by default, would save no time.
        dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if dtype is not None:
        wrapper.dtype = AMP_DTYPES[dtype]
    wrapper.type = "AmpOptimWrapper"
    if not on_cuda:
        use_amp_of_cpu(cfg)
    elif dtype == "bf16":
        wrapper.loss_scale = dict(enabled=False)
    else:
        wrapper.setdefault("loss_scale", "dynamic")


def use_amp_of_cpu(cfg: Config) -> None:
    """Have the CPU's counterpart in place of a config's ``AmpOptimWrapper``, which needs a GPU."""
    wrapper = cfg.get("optim_wrapper") or {}
    if type_name(wrapper) != "AmpOptimWrapper":
        return
    wrapper.type = "CPUAmpOptimWrapper"
    wrapper.pop("use_fsdp", None)
    if wrapper.get("dtype") != "float16":
        wrapper.pop("loss_scale", None)


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` on the CPU.

    That one refuses to be built without an accelerator, its loss scale is one for CUDA, and its autocast
    takes nothing but bf16 for the CPU. These three are replaced; the rest is inherited. Some convolutions
    stay in float32, see :func:`keep_convolutions_in_float32`.

    Args:
        dtype: ``'bfloat16'`` or ``'float16'``, a ``torch.dtype`` of them, or None for the first.
        loss_scale: For float16, as for ``AmpOptimWrapper``: ``'dynamic'``, a constant number, or a
            dict of ``torch.amp.GradScaler``'s arguments. bfloat16 has the exponents of float32 and no
            loss scale.
    """

    def __init__(
        self,
        dtype: str | torch.dtype | None = None,
        loss_scale: str | float | dict = "dynamic",
        **kwargs,
    ) -> None:
        # Not AmpOptimWrapper's own, which looks for a GPU.
        OptimWrapper.__init__(self, **kwargs)
        name = "bfloat16" if dtype is None else str(dtype).removeprefix("torch.")
        if name not in AMP_DTYPES.values():
            raise ValueError(f"dtype must be 'float16' or 'bfloat16'; got {dtype!r}")
        self.cast_dtype = getattr(torch, name)
        options, self._scale_update_param = {}, None
        if isinstance(loss_scale, dict):
            options = loss_scale
        elif isinstance(loss_scale, int | float) and loss_scale is not True and loss_scale > 0:
            # A constant one is returned to after every update.
            self._scale_update_param = float(loss_scale)
            options = {"init_scale": self._scale_update_param}
        elif loss_scale != "dynamic":
            raise ValueError(
                f"loss_scale must be 'dynamic', a positive number or a dict; got {loss_scale!r}"
            )
        if self.cast_dtype == torch.bfloat16:
            options = {"enabled": False}
        self.loss_scaler = torch.amp.GradScaler("cpu", **options)
        self._is_prepared = False

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast within the gradient-accumulation context of ``OptimWrapper``."""
        if not self._is_prepared:
            keep_convolutions_in_float32(model)
            self._is_prepared = True
        with OptimWrapper.optim_context(self, model), torch.autocast("cpu", dtype=self.cast_dtype):
            yield


def loss_scale(wrapper: BaseOptimWrapper) -> float:
    """What gradients are multiplied with at the moment; 1 without mixed precision."""
    scaler = getattr(wrapper, "loss_scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def keep_convolutions_in_float32(model: nn.Module) -> None:
    """Take convolutions of a model out of the CPU's autocast, those of necks and heads included.

    - In float16 all of them: oneDNN has no kernels for their gradients, and its plain loops took 130 times
      as long as float32 (a 3x3 convolution of 64 channels: 2.5 s instead of 19 ms).
    - In bfloat16 those with strides: see :func:`flatten_det.attention.maps.strided_convolution`.

    Each module gets a ``forward`` of its own: a mode of torch would not reach what checkpointing computes
    again in the backward pass. Without autocast they compute what they always did.
    """
    for module in model.modules():
        if isinstance(module, _ConvNd):
            has_stride = any(step > 1 for step in module.stride)
            module.forward = partial(_forward, module.forward, has_stride)


def _forward(forward: Callable[..., Tensor], has_stride: bool, image: Tensor, *args) -> Tensor:
    if image.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return forward(image, *args)
    if not has_stride and torch.get_autocast_dtype("cpu") != torch.float16:
        return forward(image, *args)
    with torch.autocast("cpu", enabled=False):
        return forward(image.float(), *args)


class GroupingOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor with a parameter group per setting, where that has one per parameter.

    Optimizers of PyTorch compute one group after the other, hundreds of them for a detector with
    ``paramwise_cfg``. Groups of equal settings become one, in the place of the first, and the optimizer is
    told to compute a group as a whole, unless its config has one of ``foreach``, ``fused``, ``capturable``
    and ``differentiable``.

    Instead of a line for every parameter, it logs one for every group, with the names in one of level DEBUG.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        implementation = _implementation(self.optimizer_cfg, list(model.parameters()))
        self.optimizer_cfg = {**implementation, **self.optimizer_cfg}
        wrapper = super().__call__(model)
        if "fused" in implementation:
            wrapper.optimizer.register_step_pre_hook(_lay_out_alike)
        return wrapper

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any
    ) -> None:
        """Add a module's parameters, and those of the modules in it, to the list of groups."""
        if prefix:  # A module in the model, for which mmengine's method calls itself.
            super().add_params(params, module, prefix, **kwargs)
            return
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(max(level, logging.WARNING))  # For mmengine's line for every parameter.
        try:
            super().add_params(params, module, **kwargs)
        finally:
            logger.setLevel(level)
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
    # They want numbers that fill their memory, in any order of the dimensions, as a copy's do.
    if has_safe_fused and all(torch.empty_like(p).stride() == p.stride() for p in parameters):
        return {"fused": True}
    is_pytorchs = getattr(kind, "__module__", "").startswith("torch.optim.")
    if devices == {"cpu"} and is_pytorchs and "foreach" in inspect.signature(kind).parameters:
        return {"foreach": True}
    return {}  # On a GPU, PyTorch chooses foreach by itself.


def _lay_out_alike(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    """Lay out gradients and states in memory as their parameters are, which fused kernels rely on.

    Nearly all are. Others come with a checkpoint of a model in another memory format, for example. On CUDA
    they are an error, but on the CPU the result is wrong, without one (PyTorch 2.15).
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = _laid_out_like(parameter, parameter.grad)
                state = optimizer.state.get(parameter, {})
                state.update({key: _laid_out_like(parameter, v) for key, v in state.items()})


def _laid_out_like(parameter: nn.Parameter, value: Any) -> Any:
    """A tensor of the parameter's shape with the parameter's strides; anything else as it is."""
    is_of_its_shape = isinstance(value, torch.Tensor) and value.shape == parameter.shape
    if not is_of_its_shape or value.stride() == parameter.stride():
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


def fit_saved_optimizer(
    checkpoint: dict[str, Any], wrapper: OptimWrapper, parameters: Sequence[nn.Parameter]
) -> None:
    """Make a checkpoint's optimizer and schedulers fit those of the run that goes on from it.

    - Of a run with one group per parameter, as mmengine makes them, the groups become those of
      :class:`GroupingOptimWrapperConstructor`. All values stay as they are.
    - How to compute is for this run to say, perhaps on another device.

    The checkpoint is changed in place; ``parameters`` are all of the model's, in its order. A UserError if
    those that are in one group now had different settings.
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
    """Merge groups of one parameter each; ``positions``: where each new group's are in the model."""
    saved = checkpoint["optimizer"]
    groups = saved["param_groups"]
    # The saved groups were in the model's order, without parameters that are not trained.
    places = sorted(place for group in positions for place in group)
    rank = {place: number for number, place in enumerate(places)}
    members = [[rank[place] for place in group] for group in positions]
    state, merged, count = {}, [], itertools.count()
    for numbers in members:
        first = _what_to_compute(groups[numbers[0]])
        new = {number: next(count) for number in numbers}
        for number in numbers:
            if (other := _what_to_compute(groups[number])) != first:
                differ = sorted(key for key in first | other if first.get(key) != other.get(key))
                raise UserError(
                    "the checkpoint cannot be resumed: its optimizer has different "
                    f"{' and '.join(differ)} for parameters that the config treats alike: use "
                    "optim_wrapper.paramwise_cfg of the interrupted run, or start from the weights "
                    "alone with --cfg-options load_from=... instead of --resume"
                )
            (old,) = groups[number]["params"]
            if old in saved["state"]:
                state[new[number]] = saved["state"][old]
        merged.append({**groups[numbers[0]], "params": list(new.values())})
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
            layers = (options.get("num_layers") if kind != "stage_wise" else None) or count
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
