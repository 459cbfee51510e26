"""Which operators ran without a formula, and which of those would have been work to count."""

from collections import Counter
from collections.abc import Container
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

# A few operations for each element, which no count of multiply-adds has; in-place forms are meant too.
# Operators that torch itself calls pointwise, and views, need no entry; floor_divide it forgot.
_MOVING = """
    _local_scalar_dense _to_copy _unsafe_index _unsafe_view argsort cat clone constant_pad_nd copy embedding
    flip floor_divide gather im2col index index_copy index_fill index_put index_select masked_fill
    masked_scatter masked_select nonzero pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad2d
    repeat replication_pad1d replication_pad2d roll scatter sort stack topk tril triu unfold
"""
_CREATING = """
    arange bernoulli empty empty_like empty_strided eye fill full full_like linspace native_dropout new_empty
    new_full new_ones new_zeros normal ones ones_like rand rand_like randint randn randn_like randperm
    scalar_tensor uniform zero zeros zeros_like
"""
_REDUCING = """
    all amax amin any argmax argmin cumsum index_add linalg_vector_norm logsumexp max mean min prod
    scatter_add scatter_reduce std sum var var_mean
"""
_NORMALISING = """
    _batch_norm_no_update _fused_rms_norm _log_softmax _native_batch_norm_legit
    _native_batch_norm_legit_no_training _safe_softmax _softmax cudnn_batch_norm native_batch_norm
    native_group_norm native_layer_norm
"""
_POOLING = """
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d avg_pool2d avg_pool3d
    max_pool2d_with_indices max_pool3d_with_indices
"""
CHEAP = frozenset(f"{_MOVING} {_CREATING} {_REDUCING} {_NORMALISING} {_POOLING}".split())
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


class OperatorLog(TorchDispatchMode):
    """Counts the calls of every operator that runs inside, in :attr:`calls`.

    Within it, a ``FlopCounterMode`` leaves it the operators that nothing decomposes any further.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func] += 1
        return func(*args, **(kwargs or {}))


def uncounted_calls(calls: Counter[Any], formulas: Container[Any]) -> dict[str, int]:
    """The operators without a formula that do, or may do, more than the cheap ones.

    Args:
        calls: of :class:`OperatorLog`.
        formulas: the operators (``OpOverloadPacket``) that have one.

    Returns:
        Name, such as ``torchvision.roi_align`` -> number of calls.
    """
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
