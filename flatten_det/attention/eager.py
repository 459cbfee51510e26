"""Shortcuts that eager mode allows: modules read instead of called, tensors kept for later calls.

A module may be read where nothing happens in its call but what its class says. Hooks act when a module is
called, and so do pruning and the older normalisations of weights, which are hooks. Parametrised, quantised
and wrapped modules are of other classes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor)
_keeps_nothing: ContextVar[bool] = ContextVar("flatten_det_keeps_nothing", default=False)


def is_plain_eager() -> bool:
    """Whether tensors are plain ones: not those of a compiler, a trace, or another mode such as fakes."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return not is_in_torch_dispatch_mode()


def without_autocast(device: torch.device) -> AbstractContextManager:
    """No autocast within; tensors without values have no device that would know of any."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is ``kind.forward`` with its parameters, and nothing else."""
    if type(module) is not kind or has_hooks_or_own_forward(module):
        return False
    # Those of other classes, such as quantised ones, decide by themselves what is done with them.
    for parameter in module._parameters.values():
        if parameter is not None and type(parameter) not in PLAIN_TENSORS:
            return False
    return True


def is_plain_depthwise(module: nn.Module) -> bool:
    """Whether calling ``module`` is to convolve each channel alone, with a result of the map's size."""
    if not is_plain(module, nn.Conv2d):
        return False
    height, width = module.kernel_size
    return (
        height == width
        and module.groups == module.in_channels == module.out_channels
        and module.stride == module.dilation == (1, 1)
        and module.padding == (height // 2, height // 2)
        and module.padding_mode == "zeros"
    )


def has_hooks_or_own_forward(module: nn.Module) -> bool:
    """Whether something else acts when ``module`` is called: hooks, or a ``forward`` of this one's own."""
    return "forward" in module.__dict__ or has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to calls of ``module``, or of any there is, as counters do."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._has_any_global_hook()
    )


@cache
def is_from_known_library(kind: type[nn.Module]) -> bool:
    """Whether modules of a class call what is in them, and keep nothing that they are given or return."""
    own = __name__.partition(".")[0]
    return kind.__module__.startswith((f"{own}.", "torch.nn.modules.", "timm.layers."))


@contextmanager
def keeping_nothing() -> Iterator[None]:
    """For its time, :func:`keeps_tensors` is False."""
    token = _keeps_nothing.set(True)
    try:
        yield
    finally:
        _keeps_nothing.reset(token)


def keeps_tensors() -> bool:
    """Whether what is made now may be kept for later calls, and what earlier ones kept may be read.

    Not in what a CUDA graph is captured of: its replays would read memory that belongs to others by then,
    and other calls what only a replay writes.
    """
    if _keeps_nothing.get():
        return False
    return not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
