"""Mixed-precision training without an accelerator."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Runs the forward pass under bf16 autocast on CPU.

    bf16 has the exponent range of fp32, so there is no loss scale.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Autocast to bf16 within the gradient-accumulation context of the base class."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield
