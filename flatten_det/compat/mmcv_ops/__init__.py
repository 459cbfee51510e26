"""``mmcv._ext`` on torch and torchvision, for an mmcv that was installed without a compiler.

Python never imports this folder as ``flatten_det.compat.mmcv_ops``: ``flatten_det_finders`` loads
it under the name ``mmcv._ext`` when there is no compiled extension, and mmcv's own layers call the
functions below with the extension's argument conventions: results go into tensors that the caller
allocated, and gradients are added to what the caller's tensors hold.
"""

# ruff: noqa: F401  (mmcv finds them here)
from inspect import isfunction

from .boxes import bbox_overlaps, line_nms_forward, nms, nms_match, softnms
from .convolutions import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    masked_col2im_forward,
    masked_im2col_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .missing import MissingOpError, hide_missing_ops
from .roi import (
    deform_roi_pool_backward,
    deform_roi_pool_forward,
    roi_align_backward,
    roi_align_forward,
    roi_pool_backward,
    roi_pool_forward,
)
from .sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)
from .weighted_sums import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
    ms_deform_attn_backward,
    ms_deform_attn_forward,
    psamask_backward,
    psamask_forward,
)


def get_compiler_version():
    """Return what ``mmcv.ops.get_compiler_version`` reports: nothing was compiled."""
    return "not compiled (flatten_det mmcv_ops)"


def get_compiling_cuda_version():
    """Return what ``mmcv.ops.get_compiling_cuda_version`` reports: nothing was compiled."""
    return "not available"


__all__ = [
    name for name, value in vars().items() if isfunction(value) and value is not hide_missing_ops
]


def __getattr__(name):
    # mmcv checks at import that every op exists, so it gets one that complains when called.
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    hide_missing_ops()

    def missing_op(*args, **kwargs):
        raise MissingOpError(name)

    missing_op.__name__ = missing_op.__qualname__ = name
    return missing_op
