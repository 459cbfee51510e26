"""Which modules may be read instead of called: nothing happens in their call but what their class says.

Hooks act when a module is called, and so do pruning and the older normalisations of weights, which are hooks.
Parametrised, quantised and wrapped modules are of other classes.
"""

from functools import cache

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import module as torch_module

PLAIN_TENSORS = (Tensor, nn.Parameter, FakeTensor)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is ``kind.forward`` with its parameters, and nothing else."""
    if type(module) is not kind or is_observed(module):
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


def is_observed(module: nn.Module) -> bool:
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
def is_known(kind: type[nn.Module]) -> bool:
    """Whether modules of a class call what is in them, and keep nothing that they are given or return."""
    own = __name__.partition(".")[0]
    return kind.__module__.startswith((f"{own}.", "torch.nn.modules.", "timm.layers."))
