"""``mmcv._ext`` on torch and torchvision, for an mmcv that was installed without a compiler.

Python never imports this folder as ``flatten_det.compat.mmcv_ops``: ``flatten_det_finders`` loads
it under the name ``mmcv._ext`` when there is no compiled extension, and mmcv's own layers call the
functions below with the extension's argument conventions: results go into tensors that the caller
allocated, and gradients are added to what the caller's tensors hold.
"""

# ruff: noqa: F403  (every function of these files is an op, but for helpers, which begin with _)
from inspect import isfunction

from .boxes import *
from .convolutions import *
from .focal_loss import *
from .missing import MissingOpError, hide_missing_ops
from .precision import at_least_float32
from .roi import *
from .sync_bn import *
from .weighted_sums import *


def get_compiler_version():
    """Return what ``mmcv.ops.get_compiler_version`` reports: nothing was compiled."""
    return "not compiled (flatten_det mmcv_ops)"


def get_compiling_cuda_version():
    """Return what ``mmcv.ops.get_compiling_cuda_version`` reports: nothing was compiled."""
    return "not available"


_NO_OPS = (isfunction, hide_missing_ops, at_least_float32)
__all__ = [name for name, value in vars().items() if isfunction(value) and value not in _NO_OPS]


def __getattr__(name):
    # mmcv checks at import that every op exists, so it gets one that complains when called.
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hide_missing_ops()

    def missing_op(*args, **kwargs):
        raise MissingOpError(name)

    missing_op.__name__ = missing_op.__qualname__ = name
    return missing_op
