"""CARAFE, content-aware reassembly of features (Wang et al., 2019).

Each output cell is the sum of the k x k features around its place on the low-resolution map, with
the weights that ``masks`` holds for it, one set per group of channels. The extension has a plain
and a rearranging version of the same sum; here they are one.

Shapes: features (N, C, H, W), masks (N, G * k * k, H * s, W * s), output (N, C, H * s, W * s).
"""

import torch.nn.functional as F

from .precision import at_least_float32


def carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor):
    """Write the reassembled features to ``output``; G is ``group_size``, s ``scale_factor``."""
    result = at_least_float32(output).zero_()
    result_cells = _by_cell(result, group_size, scale_factor)
    masks = _by_cell(at_least_float32(masks), group_size, scale_factor)
    for tap, (feature, _) in enumerate(_taps(features, kernel_size, group_size)):
        result_cells.addcmul_(feature[..., None, :, None], masks[:, :, tap, None])
    output.copy_(result)


def carafe_naive_backward(
    top_grad, features, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
):
    """Add the gradients of the features and the masks to ``bottom_grad`` and ``mask_grad``."""
    grad = _by_cell(at_least_float32(top_grad), group_size, scale_factor)
    masks = _by_cell(at_least_float32(masks), group_size, scale_factor)
    mask_grad = _by_cell(mask_grad, group_size, scale_factor)
    pad = kernel_size // 2
    batch, channels, height, width = bottom_grad.shape
    padded = grad.new_zeros(batch, channels, height + 2 * pad, width + 2 * pad)
    padded_groups = padded.unflatten(1, (group_size, -1))
    for tap, (feature, window) in enumerate(_taps(features, kernel_size, group_size)):
        mask_grad[:, :, tap] += (grad * feature[..., None, :, None]).sum(2)
        padded_groups[window] += (grad * masks[:, :, tap, None]).sum((4, 6))
    bottom_grad += padded[:, :, pad : pad + height, pad : pad + width]


def carafe_forward(
    features,
    masks,
    rfeatures,
    routput,
    rmasks,
    output,
    kernel_size,
    group_size,
    scale_factor,
):
    """:func:`carafe_naive_forward`; mmcv hands ``rfeatures`` to the backward pass in place of the
    features, and the other ``r`` tensors are the extension's work space."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad,
    rfeatures,
    masks,
    rtop_grad,
    rbottom_grad_hs,
    rbottom_grad,
    rmask_grad,
    bottom_grad,
    mask_grad,
    kernel_size,
    group_size,
    scale_factor,
):
    """:func:`carafe_naive_backward` with the features that :func:`carafe_forward` kept."""
    carafe_naive_backward(
        top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor
    )


def _by_cell(x, groups, scale):
    """View (N, G * A, H * s, W * s) as (N, G, A, H, s, W, s)."""
    return x.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))


def _taps(features, kernel_size, groups):
    """Yield, for each of the k * k places of the window, the features there, (N, G, C / G, H, W),
    and where they lie in the map padded by k // 2."""
    height, width = features.shape[2:]
    padded = F.pad(at_least_float32(features), [kernel_size // 2] * 4)
    padded = padded.unflatten(1, (groups, -1))
    for i in range(kernel_size):
        for j in range(kernel_size):
            window = (..., slice(i, i + height), slice(j, j + width))
            yield padded[window], window
