"""Counting multiply-adds: every matrix product, attention and convolution that a call runs."""

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torchvision  # noqa: F401, its import makes torch.ops.torchvision
from torch import nn
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

# FLOP formulas that torch's counter lacks; those of our own operators stand beside them.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: lambda matrix, vector, **_: 2 * prod(matrix),
    torch.ops.aten.dot: lambda left, right, **_: 2 * prod(left),
    # The convolution alone; sampling its input is not counted.
    torch.ops.torchvision.deform_conv2d: lambda x, weight, *_, out_shape, **__: (
        2 * prod(out_shape) * prod(weight[1:])
    ),
}

# A few operations for each element, which no count of multiply-adds has; in-place forms are meant too.
# Operators that torch itself calls pointwise, and views, need no entry; floor_divide it forgot.
# In turn: what moves values, creates, reduces, normalises and pools.
_CHEAP = """
    _local_scalar_dense _to_copy _unsafe_index _unsafe_view argsort cat clone constant_pad_nd copy embedding
    flip floor_divide gather im2col index index_copy index_fill index_put index_select masked_fill
    masked_scatter masked_select nonzero pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
    repeat replication_pad1d replication_pad2d roll scatter sort stack topk tril triu unfold
    arange bernoulli empty empty_like empty_strided eye fill full full_like linspace native_dropout new_empty
    new_full new_ones new_zeros normal ones ones_like rand rand_like randint randn randn_like randperm
    scalar_tensor uniform zero zeros zeros_like
    all amax amin any argmax argmin cumsum index_add linalg_vector_norm logsumexp max mean min prod
    scatter_add scatter_reduce std sum var var_mean
    _batch_norm_no_update _fused_rms_norm _log_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _safe_softmax _softmax cudnn_batch_norm native_batch_norm
    native_group_norm native_layer_norm
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d avg_pool2d avg_pool3d
    max_pool2d_with_indices max_pool3d_with_indices
"""
CHEAP = frozenset(_CHEAP.split())
_RESIZING = ("upsample_", "_upsample_")

# Reading a map between its pixels: some operations for each value read, whose number no paper counts.
SAMPLING = frozenset(
    {
        "aten.grid_sampler_2d",
        "aten.grid_sampler_3d",
        "torchvision.ps_roi_align",
        "torchvision.ps_roi_pool",
        "torchvision.roi_align",
        "torchvision.roi_pool",
    }
)


@dataclass(frozen=True)
class Complexity:
    """What a module costs.

    Modules go by dotted names, ``""`` is the whole; each number has those of what it calls. A submodule
    that another one calls, such as DINO's box branches by its decoder, is in the numbers of both.
    """

    parameters: int  # all of the module, trained or not
    macs: int  # multiply-adds
    macs_by_module: dict[str, int]
    parameters_by_module: dict[str, int]  # in the order of the modules, called or not
    macs_by_operator: dict[str, int]  # by names such as aten.bmm
    # Calls of the operators that no formula is known for, such as torchvision.roi_align.
    uncounted: dict[str, int]


def count_macs(module: nn.Module, call: Callable[[], Any]) -> Complexity:
    """Count what a call of the module, or of those of its submodules that count, does.

    It runs in evaluation mode and without gradients. Attention counts as its two products in any kernel.
    """
    was_training = module.training
    fast_path = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    log = _OperatorLog()
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
        uncounted=_uncounted_calls(log.calls, counter.flop_registry),
    )


class _Root(nn.Module):
    """Gives the module a known name, also where only parts of it are called."""

    def __init__(self, module: nn.Module, call: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self) -> Any:
        return self.call()


_PREFIX = f"{_Root.__name__}.module."


class _OperatorLog(TorchDispatchMode):
    """Counts the calls of every operator that runs inside.

    Within it, a ``FlopCounterMode`` leaves it the operators that nothing decomposes any further.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def _with_containers(macs: dict[str, int]) -> dict[str, int]:
    """Add the modules that are not called themselves, like lists and a head's parts."""
    deepest = max((name.count(".") for name in macs), default=0)
    for depth in range(deepest, 0, -1):
        sums: Counter[str] = Counter()
        for name, count in macs.items():
            if name.count(".") == depth:
                sums[name.rpartition(".")[0]] += count
        macs = {**sums, **macs}
    return dict(sorted(macs.items()))


def _uncounted_calls(calls: Counter[Any], formulas: Container[Any]) -> dict[str, int]:
    """Calls, by name, of the operators without a formula that may do more than the cheap ones."""
    found: Counter[str] = Counter()
    for operator, count in calls.items():
        packet = getattr(operator, "overloadpacket", operator)
        if packet not in formulas and not _is_cheap(operator):
            found[str(packet)] += count
    return dict(sorted(found.items()))


def _is_cheap(operator: Any) -> bool:
    # Of operators that are not torch's own, nothing is known.
    if not isinstance(operator, OpOverload) or operator.namespace not in ("aten", "prim", "prims"):
        return False
    if operator.is_view or torch.Tag.pointwise in operator.tags or operator.namespace == "prim":
        return True
    name = operator.overloadpacket.__name__
    return name in CHEAP or name.removesuffix("_") in CHEAP or name.startswith(_RESIZING)
