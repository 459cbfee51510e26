"""Deformable RoI pooling (Dai et al., 2017): RoIAlign's average, with every bin moved by an offset.

Features are (N, C, H, W), RoIs (K, 5) ``batch index, x1, y1, x2, y2`` in image pixels, outputs
(K, C, PH, PW). Offsets are (K, 2, PH, PW), x before y, in units of ``gamma`` times the RoI's width
and height; an empty tensor stands for none.
"""

import torch

from .precision import at_least_float32
from .roi_align import SampleGrid, bilinear, neighbours, on_map


def deform_roi_pool_forward(
    input,
    rois,
    offset,
    output,
    pooled_height,
    pooled_width,
    spatial_scale,
    sampling_ratio,
    gamma,
):
    """Pool each RoI into ``output`` (K, C, PH, PW); 0 for a RoI without samples.

    Args:
        input: features (N, C, H, W).
        rois: (K, 5).
        offset: (K, 2, PH, PW), or empty.
        output: filled in place.
        pooled_height, pooled_width: PH and PW.
        spatial_scale: feature cells per image pixel.
        sampling_ratio: samples per bin and direction; 0 for about one per feature cell.
        gamma: share of the RoI's size that an offset of 1 moves a bin by.
    """
    cells, first_cell = _cells(input, rois)
    grid = _grid(rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma)
    total = cells.new_zeros(rois.size(0), pooled_height * pooled_width, cells.size(1))
    for roi, y, x in grid.samples():
        for cell, weight in bilinear(y, x, *input.shape[2:]):
            total[roi] += cells[first_cell[roi] + cell] * weight.unsqueeze(2)
    total /= (grid.count_y * grid.count_x).clamp(min=1)
    output.copy_(total.transpose(1, 2).view_as(output))


def deform_roi_pool_backward(
    grad_output,
    input,
    rois,
    offset,
    grad_input,
    grad_offset,
    pooled_height,
    pooled_width,
    spatial_scale,
    sampling_ratio,
    gamma,
):
    """Add the gradients of the features and the offsets to ``grad_input`` and ``grad_offset``."""
    height, width = input.shape[2:]
    cells, first_cell = _cells(input, rois)
    grid = _grid(rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma)
    grad = at_least_float32(grad_output).flatten(2).transpose(1, 2)  # [K, PH * PW, C]
    grad = grad / (grid.count_y * grid.count_x)
    d_cells = cells.new_zeros(cells.shape)
    d_offset = cells.new_zeros(rois.size(0), 2, grad.size(1))
    for roi, y, x in grid.samples():
        corners = []
        for cell, weight in bilinear(y, x, height, width):
            index = first_cell[roi] + cell
            d_cells.index_add_(0, index.flatten(), (grad[roi] * weight.unsqueeze(2)).flatten(0, 1))
            corners.append((cells[index] * grad[roi]).sum(2))
        if offset.numel():
            d_offset[roi] += _slopes(y, x, corners, height, width)
    grad_input += d_cells.unflatten(0, (input.size(0), height, width)).permute(0, 3, 1, 2)
    if offset.numel():
        unit = gamma * torch.cat([grid.width, grid.height], 1)  # [K, 2, 1]
        grad_offset += (unit * d_offset).view_as(grad_offset)


def _cells(input, rois):
    """The features as (N * H * W, C), and each RoI's first cell in them, (K, 1)."""
    _, channels, height, width = input.shape
    cells = at_least_float32(input).permute(0, 2, 3, 1).reshape(-1, channels)
    return cells, rois[:, :1].long() * (height * width)


def _grid(rois, offset, pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma):
    """RoIAlign's samples, moved by the offsets."""
    rois = at_least_float32(rois)
    grid = SampleGrid(rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, True)
    if offset.numel():
        offset = at_least_float32(offset)
        grid.x = grid.x + gamma * grid.width * offset[:, 0]
        grid.y = grid.y + gamma * grid.height * offset[:, 1]
    return grid


def _slopes(y, x, corners, height, width):
    """Slopes along x and y (A, 2, PH * PW) of samples whose four cells hold ``corners``.

    These are the extension's, which takes the places as they are where samples read the border:
    up to the first cell's centre the slopes of the cells after it go on, and from the last one's
    on there is none along either axis.
    """
    top_left, top_right, bottom_left, bottom_right = corners
    (y0, y1), (x0, x1) = neighbours(y, height), neighbours(x, width)
    along_x = (bottom_right - bottom_left) * (y - y0) + (top_right - top_left) * (y1 - y)
    along_y = (bottom_right - top_right) * (x - x0) + (bottom_left - top_left) * (x1 - x)
    inside = on_map(y, x, height, width)
    return torch.stack([along_x * inside, along_y * inside], 1)
