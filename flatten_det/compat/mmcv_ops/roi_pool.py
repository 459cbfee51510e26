"""RoIPool (Girshick, 2015) with mmcv's bins, which are not rounded as torchvision's are.

A RoI covers ``x1 * scale`` to ``(x2 + 1) * scale``; each of its PH x PW bins takes every feature
cell that it touches, so neighbouring bins may share cells.
"""

import torch

from .precision import at_least_float32


def roi_pool_forward(input, rois, output, argmax, pooled_height, pooled_width, spatial_scale):
    """Write the maximum of each bin to ``output`` and its cell to ``argmax``.

    Args:
        input: features (N, C, H, W).
        rois: (K, 5) ``batch index, x1, y1, x2, y2`` in image pixels, corners included.
        output: (K, C, PH, PW), filled in place; 0 in a bin without cells.
        argmax: int (K, C, PH, PW), filled in place with ``row * W + column``; -1 without cells.
        pooled_height, pooled_width: PH and PW.
        spatial_scale: feature cells per image pixel.
    """
    if rois.size(0) == 0:
        return
    _, channels, height, width = input.shape
    cells = at_least_float32(input).permute(0, 2, 3, 1).reshape(-1, channels)  # [N * H * W, C]
    rois = rois.to(cells.dtype)
    first_cell = rois[:, 0].long().view(-1, 1, 1) * (height * width)
    x1, x2 = _bins(rois[:, 1], rois[:, 3], spatial_scale, pooled_width, width)
    y1, y2 = _bins(rois[:, 2], rois[:, 4], spatial_scale, pooled_height, height)
    bin_width, bin_height = (x2 - x1).amax(1), (y2 - y1).amax(1)

    best = cells.new_full((rois.size(0), pooled_height, pooled_width, channels), -torch.inf)
    best_cell = torch.full_like(best, -1, dtype=torch.int)
    # One cell of every bin at a time, so memory stays at the size of the output.
    for i in range(int(bin_height.max())):
        for j in range(int(bin_width.max())):
            roi = ((bin_height > i) & (bin_width > j)).nonzero().squeeze(1)
            y, x = y1[roi].unsqueeze(2) + i, x1[roi].unsqueeze(1) + j
            in_bin = (y < y2[roi].unsqueeze(2)) & (x < x2[roi].unsqueeze(1))  # [A, PH, PW]
            cell = (y * width + x).masked_fill(~in_bin, 0)
            value = cells[first_cell[roi] + cell]  # [A, PH, PW, C]
            old = best[roi]
            better = in_bin.unsqueeze(3) & (value > old)
            best[roi] = torch.where(better, value, old)
            best_cell[roi] = torch.where(better, cell.unsqueeze(3).int(), best_cell[roi])
    best.masked_fill_(best_cell < 0, 0)
    output.copy_(best.permute(0, 3, 1, 2))
    argmax.copy_(best_cell.permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output, rois, argmax, grad_input, pooled_height, pooled_width, spatial_scale
):
    """Add the gradient of the features to ``grad_input`` (N, C, H, W)."""
    _, channels, height, width = grad_input.shape
    grad = at_least_float32(grad_output).masked_fill(argmax < 0, 0)
    channel = torch.arange(channels, device=grad.device).view(1, -1, 1, 1)
    plane = rois[:, 0].long().view(-1, 1, 1, 1) * channels + channel
    index = plane * (height * width) + argmax.clamp(min=0)
    total = grad.new_zeros(grad_input.numel()).index_add_(0, index.flatten(), grad.flatten())
    grad_input += total.view_as(grad_input)


def _bins(low, high, scale, count, size):
    """First cell and end of each bin, (K, count) each, within [0, size]; no cells for a RoI whose
    high corner lies before its low one."""
    low, high = low.unsqueeze(1) * scale, (high.unsqueeze(1) + 1) * scale
    step = (high - low) / count
    edge = torch.arange(count, device=low.device)
    first = (edge * step + low).floor().clamp(0, size).long()
    end = ((edge + 1) * step + low).ceil().clamp(0, size).long()
    return first, torch.where(high > low, end, first)
