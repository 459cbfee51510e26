"""Counting multiply-adds: every matrix product, attention and convolution that a call runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .formulas import FORMULAS
from .uncounted import OperatorLog, uncounted_calls


@dataclass(frozen=True)
class Complexity:
    """What a module costs.

    Attributes:
        parameters: all parameters of the module, trained or not.
        macs: multiply-adds. Papers, MMDetection and MMSegmentation call this number FLOPs; it is half of
            the floating-point operations. Norms, activations, resizing and sampling are not in it.
        macs_by_module: multiply-adds by a submodule's dotted name, including those of what it calls;
            ``""`` is the whole. A submodule that another one calls, such as DINO's box branches by its
            decoder, is in the numbers of both.
        parameters_by_module: parameters, likewise, in the order of the modules, called or not.
        macs_by_operator: multiply-adds by the operator's name, such as ``aten.bmm``.
        uncounted: calls of the operators that no formula is known for, by name, such as
            ``torchvision.roi_align``. ``macs`` lacks what they do.
    """

    parameters: int
    macs: int
    macs_by_module: dict[str, int]
    parameters_by_module: dict[str, int]
    macs_by_operator: dict[str, int]
    uncounted: dict[str, int]


class _Root(nn.Module):
    """Gives the module a known name, also where only parts of it are called."""

    def __init__(self, module: nn.Module, call: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self) -> Any:
        return self.call()


_PREFIX = f"{_Root.__name__}.module."


def count_macs(module: nn.Module, call: Callable[[], Any]) -> Complexity:
    """Count what a call does, in evaluation mode and without gradients.

    Attention counts as its two matrix products, whichever kernel would compute it.

    Args:
        module: the module whose parameters and submodules are meant.
        call: runs it, or those of its submodules that count.
    """
    was_training = module.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    log = OperatorLog()
    # The fused operators of nn.MultiheadAttention and of attention would hide the products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), log, counter:
            _Root(module, call).eval()()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        module.train(was_training)
    counts = counter.get_flop_counts()
    macs = {
        name.removeprefix(_PREFIX): sum(flops.values()) // 2
        for name, flops in counts.items()
        if name.startswith(_PREFIX)
    }
    total = counter.get_total_flops() // 2
    parameters = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in module.named_modules(remove_duplicate=False)
    }
    return Complexity(
        parameters=parameters[""],
        macs=total,
        macs_by_module={"": total, **_with_containers(macs)},
        parameters_by_module=parameters,
        macs_by_operator={str(k): flops // 2 for k, flops in counts.get("Global", {}).items()},
        uncounted=uncounted_calls(log.calls, counter.flop_registry),
    )


def _with_containers(macs: dict[str, int]) -> dict[str, int]:
    """Add the modules that are not called themselves, like lists and a head's parts."""
    deepest = max((name.count(".") for name in macs), default=0)
    for depth in range(deepest, 0, -1):
        sums: dict[str, int] = {}
        for name, count in macs.items():
            if name.count(".") == depth:
                parent = name.rpartition(".")[0]
                sums[parent] = sums.get(parent, 0) + count
        macs = sums | macs
    return dict(sorted(macs.items()))
