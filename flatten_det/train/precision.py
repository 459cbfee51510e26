"""Mixed-precision training, with an accelerator or without."""

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, BaseOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..config import type_name
from ..errors import UserError


def keep_convolutions_in_float32(model: nn.Module) -> None:
    """Take convolutions of a model out of the CPU's autocast, those of necks and heads included.

    - In float16 all of them: oneDNN has no kernels for their gradients, and its plain loops took 130 times
      as long as float32 (a 3x3 convolution of 64 channels: 2.5 s instead of 19 ms).
    - In bfloat16 those with strides: see :mod:`flatten_det.attention.strided_convolution`.

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


# What the command line calls them, and what mmengine does.
AMP_DTYPES = {"fp16": "float16", "bf16": "bfloat16"}


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` on the CPU.

    That one refuses to be built without an accelerator, its loss scale is one for CUDA, and its autocast
    takes nothing but bf16 for the CPU. These three are replaced; the rest is inherited. Some convolutions
    stay in float32, see :mod:`.cpu_convolutions`.

    Args:
        dtype: ``'bfloat16'`` or ``'float16'``, a ``torch.dtype`` of them, or None for the first.
        loss_scale: For float16, as for ``AmpOptimWrapper``: ``'dynamic'``, a constant number, or a
            dict of ``torch.amp.GradScaler``'s arguments. bfloat16 has the exponents of float32 and no
            loss scale.
        **kwargs: Those of ``OptimWrapper``.

    Raises:
        ValueError: for another dtype or loss scale.
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
        options, self._scale_update_param = _scaler_options(loss_scale)
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


def _scaler_options(loss_scale: str | float | dict) -> tuple[dict, float | None]:
    """Arguments of a ``GradScaler``, and the scale to return to after every update, if it is constant."""
    if loss_scale == "dynamic":
        return {}, None
    if isinstance(loss_scale, dict):
        return dict(loss_scale), None
    if isinstance(loss_scale, int | float) and not isinstance(loss_scale, bool) and loss_scale > 0:
        return {"init_scale": float(loss_scale)}, float(loss_scale)
    raise ValueError(
        f"loss_scale must be 'dynamic', a positive number or a dict; got {loss_scale!r}"
    )


def loss_scale(wrapper: BaseOptimWrapper) -> float:
    """What gradients are multiplied with at the moment; 1 without mixed precision."""
    scaler = getattr(wrapper, "loss_scaler", None)
    return 1.0 if scaler is None else scaler.get_scale()


def enable_amp(cfg: Config, dtype: str | None = None) -> None:
    """Train in mixed precision, fp16 with a loss scale.

    Args:
        cfg: The config; its ``optim_wrapper`` is changed.
        dtype: ``'fp16'`` or ``'bf16'``. None: what the config says, an ``AmpOptimWrapper`` without a dtype
            fp16 on CUDA, else bf16, or fp16 on a GPU that has no bf16.

    Raises:
        UserError: The config's optimizer wrapper has no mixed-precision counterpart.
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
