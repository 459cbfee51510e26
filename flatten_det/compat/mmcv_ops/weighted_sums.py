"""Sums of neighbours with predicted weights: CARAFE, PSAMask, multi-scale deformable attention."""

import torch
import torch.nn.functional as F

from .precision import at_least_float32

# CARAFE, content-aware reassembly of features (Wang et al., 2019): each output cell is the sum of the k x k
# features around its place on the low-resolution map, with the weights that ``masks`` holds for it, one set
# per group of channels. The extension has a plain and a rearranging version of the same sum; here they are
# one. Shapes: features (N, C, H, W), masks (N, G * k * k, H * s, W * s), output (N, C, H * s, W * s).


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


def carafe_forward(features, masks, rfeatures, routput, rmasks, output, **sizes):
    """:func:`carafe_naive_forward`; mmcv hands ``rfeatures`` to the backward pass in place of the
    features, and the other ``r`` tensors are the extension's work space."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **sizes)


def carafe_backward(top_grad, rfeatures, masks, *work_space_and_grads, **sizes):
    """:func:`carafe_naive_backward` with the features that :func:`carafe_forward` kept."""
    carafe_naive_backward(top_grad, rfeatures, masks, *work_space_and_grads[-2:], **sizes)


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


# PSAMask, the attention maps of PSANet (Zhao et al., 2018): every cell predicts a mask over its surroundings,
# HM x WM, centred on itself. The op lays these out over the absolute cells: (N, HM * WM, H, W) becomes
# (N, H * W, H, W).
_COLLECT = 0


def psamask_forward(input, output, psa_type, num_, **sizes):
    """Fill ``output`` (N, H * W, H, W): channel = the cell looked at and place = the looking cell
    for ``psa_type`` 0 (collect), the other way round for 1 (distribute); 0 beyond the mask."""
    index, beyond = _mask_index(input.device, **sizes)
    masks = input.flatten(2)
    collected = masks.gather(1, index.expand(num_, -1, -1)).masked_fill_(beyond, 0)
    output.copy_(_transposed(collected, psa_type).view_as(output))


def psamask_backward(grad_output, grad_input, psa_type, num_, **sizes):
    """Add the gradient of the masks to ``grad_input`` (N, HM * WM, H, W)."""
    index, beyond = _mask_index(grad_output.device, **sizes)
    grad = _transposed(grad_output.flatten(2), psa_type).masked_fill(beyond, 0)
    total = torch.zeros_like(grad_input).flatten(2)
    total.scatter_add_(1, index.expand(num_, -1, -1), grad)
    grad_input += total.view_as(grad_input)


def _transposed(collected, psa_type):
    return collected if psa_type == _COLLECT else collected.transpose(1, 2)


def _mask_index(device, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask):
    """For each (cell looked at, looking cell), (H * W, H * W): the mask channel that says how much,
    and whether it lies beyond the mask."""
    cell = torch.arange(h_feature * w_feature, device=device)
    y, x = cell // w_feature, cell % w_feature
    row = y.unsqueeze(1) - y + half_h_mask
    column = x.unsqueeze(1) - x + half_w_mask
    beyond = (row < 0) | (row >= h_mask) | (column < 0) | (column >= w_mask)
    return (row * w_mask + column).masked_fill_(beyond, 0), beyond


# Multi-scale deformable attention (Zhu et al., 2021, equation 3). Shapes: B images, K = sum of the levels'
# H * W keys, M heads of D channels, Q queries, L levels, P points. One image and one level are sampled at a
# time, and the backward pass samples them again, so memory does not grow with B or L; ``im2col_step``, the
# extension's way to that, is not needed.


def ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step):
    """Return the attended values (B, Q, M * D).

    Args:
        value: (B, K, M, D).
        shapes: int (L, 2), H and W of each level.
        starts: int (L,), each level's first key.
        locations: (B, Q, M, L, P, 2), x and y from 0 to 1 over each level's map; off it is 0.
        weights: (B, Q, M, L, P).
    """
    batch, queries, heads = locations.shape[:3]
    output = at_least_float32(value).new_zeros(batch, queries, heads, value.size(3))
    for keys, level, shape in _slices(value, shapes, starts):
        parts = value[keys], locations[level], weights[level]
        output[level[0]] += _attend(*map(at_least_float32, parts), shape)
    return output.flatten(2).to(value.dtype)


def ms_deform_attn_backward(value, shapes, starts, locations, weights, *grads, im2col_step):
    """Add each gradient to the tensor that the caller holds for it.

    ``grads`` are that of the output (B, Q, M * D), and those of value, locations and weights.
    """
    grad_output, grad_value, grad_locations, grad_weights = grads
    grad_output = at_least_float32(grad_output).unflatten(2, value.shape[2:])
    for keys, level, shape in _slices(value, shapes, starts):
        parts = value[keys], locations[level], weights[level]
        inputs = [at_least_float32(part).detach().requires_grad_() for part in parts]
        with torch.enable_grad():
            attended = _attend(*inputs, shape)
        found = torch.autograd.grad(attended, inputs, grad_output[level[0]])
        grad_value[keys] += found[0]
        grad_locations[level] += found[1]
        grad_weights[level] += found[2]


def _slices(value, shapes, starts):
    """Yield, for every image and level, where its keys and its locations are, and the level's (H, W)."""
    levels = list(zip(starts.tolist(), shapes.tolist(), strict=True))
    for image in range(value.size(0)):
        for level, (start, (height, width)) in enumerate(levels):
            keys = image, slice(start, start + height * width)
            yield keys, (image, slice(None), slice(None), level), (height, width)


def _attend(value, locations, weights, shape):
    """Attended values (Q, M, D) of one image's level: value (H * W, M, D), locations (Q, M, P, 2),
    weights (Q, M, P).

    The places are computed as the extension does: ``grid_sample`` rounds them differently, so that
    a place on a cell's centre may get the slope before it, and one at exactly -1 gets any at all.
    """
    height, width = shape
    x, y = locations[..., 0] * width - 0.5, locations[..., 1] * height - 0.5
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y0, x0 = y.detach().floor(), x.detach().floor()
    heads = value.size(1)
    head = torch.arange(heads, device=value.device).view(-1, 1)
    cells, shares = [], []
    for row, share_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for column, share_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            on_map = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            cell = (row * width + column).long().masked_fill(~on_map, 0)
            cells.append(cell * heads + head)
            shares.append((weights * share_y * share_x).masked_fill(~on_map, 0))
    attended = F.embedding_bag(
        torch.cat(cells, 2).flatten(0, 1),
        value.flatten(0, 1),
        per_sample_weights=torch.cat(shares, 2).flatten(0, 1),
        mode="sum",
    )
    return attended.unflatten(0, (-1, heads))
