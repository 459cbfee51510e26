"""RoIAlign (He et al., 2017), pooling each bin's bilinear samples by average or maximum.

Features are (N, C, H, W), RoIs (K, 5) ``batch index, x1, y1, x2, y2`` in image pixels, outputs
(K, C, PH, PW). Average pooling is torchvision's operator; torchvision has no maximum.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

from .precision import at_least_float32

MAX = 0


def roi_align_forward(
    input,
    rois,
    output,
    argmax_y,
    argmax_x,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Pool each RoI into ``output`` (K, C, PH, PW).

    Args:
        input: features (N, C, H, W).
        rois: (K, 5).
        output: filled in place.
        argmax_y, argmax_x: (K, C, PH, PW), filled in place with the place of each maximum on the
            feature map; empty tensors for average pooling.
        aligned_height, aligned_width: PH and PW.
        spatial_scale: feature cells per image pixel.
        sampling_ratio: samples per bin and direction; 0 for about one per feature cell.
        pool_mode: 0 for the maximum, 1 for the average.
        aligned: whether a cell's centre is at half a cell, not at its corner.
    """
    features = at_least_float32(input)
    rois = rois.to(features.dtype)
    if pool_mode == MAX:
        grid = _SampleGrid(
            rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
        for target, source in zip(
            (output, argmax_y, argmax_x), _max_over_samples(features, rois, grid), strict=True
        ):
            target.copy_(source.transpose(1, 2).view_as(target))
    else:
        output.copy_(
            torch.ops.torchvision.roi_align(
                features,
                rois,
                spatial_scale,
                aligned_height,
                aligned_width,
                sampling_ratio,
                aligned,
            )
        )


def roi_align_backward(
    grad_output,
    rois,
    argmax_y,
    argmax_x,
    grad_input,
    aligned_height,
    aligned_width,
    spatial_scale,
    sampling_ratio,
    pool_mode,
    aligned,
):
    """Add the gradient of the features to ``grad_input`` (N, C, H, W)."""
    grad = at_least_float32(grad_output)
    rois = rois.to(grad.dtype)
    if pool_mode == MAX:
        grad_input += _max_backward(grad, rois, argmax_y, argmax_x, grad_input.shape)
    else:
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )


class _SampleGrid:
    """Where RoIAlign samples: ``count_y x count_x`` places in each of PH x PW bins of each RoI."""

    def __init__(self, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
        corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
        self.x, self.y = corners[:, 0], corners[:, 1]
        width, height = corners[:, 2] - self.x, corners[:, 3] - self.y
        if not aligned:
            width, height = width.clamp(min=1), height.clamp(min=1)
        self.bin_height, self.bin_width = height / pooled_height, width / pooled_width
        if sampling_ratio > 0:
            self.count_y = self.count_x = torch.full_like(width, sampling_ratio)
        else:
            self.count_y, self.count_x = self.bin_height.ceil(), self.bin_width.ceil()
        self.pooled_height, self.pooled_width = pooled_height, pooled_width

    def samples(self):
        """Yield, for each place in a bin, the RoIs (A,) that have it and its y and x on the
        feature map in all their bins, each (A, PH * PW)."""
        bins_y = torch.arange(self.pooled_height, device=self.y.device)
        bins_x = torch.arange(self.pooled_width, device=self.x.device)
        shape = (-1, self.pooled_height, self.pooled_width)
        for i in range(int(self.count_y.max())):
            for j in range(int(self.count_x.max())):
                roi = ((self.count_y > i) & (self.count_x > j)).nonzero().squeeze(1)
                step_y = bins_y + ((i + 0.5) / self.count_y[roi]).unsqueeze(1)
                step_x = bins_x + ((j + 0.5) / self.count_x[roi]).unsqueeze(1)
                y = self.y[roi].unsqueeze(1) + step_y * self.bin_height[roi].unsqueeze(1)
                x = self.x[roi].unsqueeze(1) + step_x * self.bin_width[roi].unsqueeze(1)
                y, x = y.unsqueeze(2).expand(shape), x.unsqueeze(1).expand(shape)
                yield roi, y.flatten(1), x.flatten(1)


def _max_over_samples(features, rois, grid):
    """Maximum over each bin's samples and its y and x, each (K, PH * PW, C).

    Holds one sample of every bin at a time. A bin without samples, as in a RoI without area, gives
    0 and a place off the map, which takes no gradient.
    """
    _, channels, height, width = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(-1, channels)  # [N * H * W, C]
    first_cell = rois[:, :1].long() * (height * width)
    shape = (rois.size(0), grid.pooled_height * grid.pooled_width, channels)
    best = features.new_full(shape, -torch.inf)
    best_y, best_x = features.new_full(shape, -2), features.new_full(shape, -2)
    if rois.size(0) == 0:
        return best, best_y, best_x
    for roi, y, x in grid.samples():
        value = 0
        for cell, weight in _bilinear(y, x, height, width):
            value = value + cells[first_cell[roi] + cell] * weight.unsqueeze(2)
        old = best[roi]
        better = value > old
        best[roi] = torch.where(better, value, old)
        best_y[roi] = torch.where(better, y.unsqueeze(2), best_y[roi])
        best_x[roi] = torch.where(better, x.unsqueeze(2), best_x[roi])
    return best.masked_fill_(best == -torch.inf, 0), best_y, best_x


def _max_backward(grad, rois, argmax_y, argmax_x, shape):
    """Gradient of the features (N, C, H, W): each output's goes to the cells its sample read."""
    _, channels, height, width = shape
    grad_input = grad.new_zeros(shape)
    channel = torch.arange(channels, device=grad.device).view(1, -1, 1, 1)
    plane = rois[:, 0].long().view(-1, 1, 1, 1) * channels + channel
    for cell, weight in _bilinear(argmax_y, argmax_x, height, width):
        index = plane * (height * width) + cell
        grad_input.view(-1).index_add_(0, index.flatten(), (grad * weight).flatten())
    return grad_input


def _bilinear(y, x, height, width):
    """Yield the four cells (index ``row * width + column``) around each place, with their weights.

    A place up to a cell off the map reads the border, one further off reads 0.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    y0, x0 = y.floor().long(), x.floor().long()
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    fy, fx = y - y0, x - x0
    for row, weight_y in ((y0, 1 - fy), (y1, fy)):
        for column, weight_x in ((x0, 1 - fx), (x1, fx)):
            yield row * width + column, weight_y * weight_x * inside
