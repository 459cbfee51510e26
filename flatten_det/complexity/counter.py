"""Counting multiply-adds: every matrix product, attention and convolution that a call runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


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
    """

    parameters: int
    macs: int
    macs_by_module: dict[str, int]


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
    counter = FlopCounterMode(display=False)
    # The fused operators of nn.MultiheadAttention and of attention would hide the products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            _Root(module, call).eval()()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        module.train(was_training)
    macs = {
        name.removeprefix(_PREFIX): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name.startswith(_PREFIX)
    }
    total = counter.get_total_flops() // 2
    return Complexity(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=total,
        macs_by_module={"": total, **_with_containers(macs)},
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
