"""Multi-scale deformable attention (Zhu et al., 2021, equation 3).

Shapes: B images, K = sum of the levels' H * W keys, M heads of D channels, Q queries, L levels,
P points. One image and one level are sampled at a time, and the backward pass samples them again,
so memory does not grow with B or L; ``im2col_step``, the extension's way to that, is not needed.
"""

import torch
import torch.nn.functional as F

from .precision import at_least_float32


def ms_deform_attn_forward(
    value,
    value_spatial_shapes,
    value_level_start_index,
    sampling_locations,
    attention_weights,
    im2col_step,
):
    """Return the attended values (B, Q, M * D).

    Args:
        value: (B, K, M, D).
        value_spatial_shapes: int (L, 2), H and W of each level.
        value_level_start_index: int (L,), each level's first key.
        sampling_locations: (B, Q, M, L, P, 2), x and y from 0 to 1 over each level's map; 0 is
            read off it.
        attention_weights: (B, Q, M, L, P).
        im2col_step: not used.
    """
    batch, queries, heads = sampling_locations.shape[:3]
    output = at_least_float32(value).new_zeros(batch, queries, heads, value.size(3))
    for image, level, keys, shape in _slices(value, value_spatial_shapes, value_level_start_index):
        output[image] += _attend(
            at_least_float32(value[image, keys]),
            at_least_float32(sampling_locations[image, :, :, level]),
            at_least_float32(attention_weights[image, :, :, level]),
            shape,
        )
    return output.flatten(2).to(value.dtype)


def ms_deform_attn_backward(
    value,
    value_spatial_shapes,
    value_level_start_index,
    sampling_locations,
    attention_weights,
    grad_output,
    grad_value,
    grad_sampling_loc,
    grad_attn_weight,
    im2col_step,
):
    """Add each gradient to the tensor that the caller holds for it; ``grad_output`` (B, Q, M * D).

    The other arguments are as in :func:`ms_deform_attn_forward`.
    """
    grad_output = at_least_float32(grad_output).unflatten(2, value.shape[2:])
    for image, level, keys, shape in _slices(value, value_spatial_shapes, value_level_start_index):
        inputs = [
            at_least_float32(x).detach().requires_grad_()
            for x in (
                value[image, keys],
                sampling_locations[image, :, :, level],
                attention_weights[image, :, :, level],
            )
        ]
        with torch.enable_grad():
            attended = _attend(*inputs, shape)
        d_value, d_locations, d_weights = torch.autograd.grad(attended, inputs, grad_output[image])
        grad_value[image, keys] += d_value
        grad_sampling_loc[image, :, :, level] += d_locations
        grad_attn_weight[image, :, :, level] += d_weights


def _slices(value, value_spatial_shapes, value_level_start_index):
    """Yield every image, level, the level's keys and its (H, W)."""
    starts = value_level_start_index.tolist()
    shapes = value_spatial_shapes.tolist()
    for image in range(value.size(0)):
        for level, (start, (height, width)) in enumerate(zip(starts, shapes, strict=True)):
            yield image, level, slice(start, start + height * width), (height, width)


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
