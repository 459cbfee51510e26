"""Mixed-precision training, with an accelerator or without."""

from contextlib import contextmanager

import torch
from mmengine.optim import AmpOptimWrapper, BaseOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from .cpu_convolutions import keep_convolutions_in_float32

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
