"""Who listens to a module must see it called, with inputs and outputs that stay as they were."""

from torch import nn
from torch.nn.modules import module as torch_module


def is_observed(*modules: nn.Module) -> bool:
    """Whether somebody listens to calls of one of ``modules``, or of all there are, as counters do."""
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
