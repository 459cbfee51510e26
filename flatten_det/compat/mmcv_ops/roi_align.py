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
        grid = SampleGrid(
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


class SampleGrid:
    """Where RoIAlign samples: ``count_y x count_x`` places in each of PH x PW bins of each RoI.

    Its tensors are (K, 1, 1); ``y`` and ``x``, where the bins are counted from, may be (K, PH, PW).
    Places are computed in the extension's order, for rounding decides what the map's edge is.
    """

    def __init__(self, rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, aligned):
        corners = rois[:, 1:, None, None] * spatial_scale - (0.5 if aligned else 0.0)
        self.x, self.y = corners[:, 0], corners[:, 1]
        self.width, self.height = corners[:, 2] - self.x, corners[:, 3] - self.y
        if not aligned:
            self.width, self.height = self.width.clamp(min=1), self.height.clamp(min=1)
        self.bin_height = self.height / pooled_height
        self.bin_width = self.width / pooled_width
        if sampling_ratio > 0:
            self.count_y = self.count_x = torch.full_like(self.width, sampling_ratio)
        else:
            self.count_y, self.count_x = self.bin_height.ceil(), self.bin_width.ceil()
        self.pooled_height, self.pooled_width = pooled_height, pooled_width

    def samples(self):
        """Yield, for each place in a bin, the RoIs (A,) that have it and its y and x on the
        feature map in all their bins, each (A, PH * PW)."""
        if self.y.size(0) == 0:
            return
        bins_y = torch.arange(self.pooled_height, device=self.y.device).view(-1, 1)
        bins_x = torch.arange(self.pooled_width, device=self.x.device)
        shape = (-1, self.pooled_height, self.pooled_width)
        starts_y, starts_x = self.y + bins_y * self.bin_height, self.x + bins_x * self.bin_width
        for i in range(int(self.count_y.max())):
            for j in range(int(self.count_x.max())):
                roi = ((self.count_y > i) & (self.count_x > j)).flatten().nonzero().squeeze(1)
                y = starts_y[roi] + (i + 0.5) * self.bin_height[roi] / self.count_y[roi]
                x = starts_x[roi] + (j + 0.5) * self.bin_width[roi] / self.count_x[roi]
                yield roi, y.expand(shape).flatten(1), x.expand(shape).flatten(1)


def _max_over_samples(features, rois, grid):
    """Maximum over each bin's samples and its y and x, each (K, PH * PW, C).

    Holds one sample of every bin at a time. A bin without samples, as in a RoI without area, gives
    0 and -1, as in the extension.
    """
    _, channels, height, width = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(-1, channels)  # [N * H * W, C]
    first_cell = rois[:, :1].long() * (height * width)
    shape = (rois.size(0), grid.pooled_height * grid.pooled_width, channels)
    best = features.new_full(shape, -torch.inf)
    best_y, best_x = features.new_full(shape, -1), features.new_full(shape, -1)
    for roi, y, x in grid.samples():
        value = 0
        for cell, weight in bilinear(y, x, height, width):
            value = value + cells[first_cell[roi] + cell] * weight.unsqueeze(2)
        old = best[roi]
        better = value > old
        best[roi] = torch.where(better, value, old)
        best_y[roi] = torch.where(better, y.unsqueeze(2), best_y[roi])
        best_x[roi] = torch.where(better, x.unsqueeze(2), best_x[roi])
    return best.masked_fill_(best == -torch.inf, 0), best_y, best_x


def _max_backward(grad, rois, argmax_y, argmax_x, shape):
    """Gradient of the features (N, C, H, W): each output's goes to the cells its sample read.

    A maximum at exactly -1 takes none, because the extension marks bins without samples so.
    """
    _, channels, height, width = shape
    grad = grad.masked_fill(argmax_y == -1, 0)
    grad_input = grad.new_zeros(shape)
    channel = torch.arange(channels, device=grad.device).view(1, -1, 1, 1)
    plane = rois[:, 0].long().view(-1, 1, 1, 1) * channels + channel
    for cell, weight in bilinear(argmax_y, argmax_x, height, width):
        index = plane * (height * width) + cell
        grad_input.view(-1).index_add_(0, index.flatten(), (grad * weight).flatten())
    return grad_input


def bilinear(y, x, height, width):
    """Yield the four cells (index ``row * width + column``) around each place, with their weights.

    A place up to a cell off the map reads the border, one further off reads 0.
    """
    inside = on_map(y, x, height, width)
    (y0, y1), (x0, x1) = neighbours(y, height), neighbours(x, width)
    fy, fx = y.clamp(0, height - 1) - y0, x.clamp(0, width - 1) - x0
    for row, weight_y in ((y0, 1 - fy), (y1, fy)):
        for column, weight_x in ((x0, 1 - fx), (x1, fx)):
            yield row * width + column, weight_y * weight_x * inside


def on_map(y, x, height, width):
    """Whether each place lies on the map or at most a cell off it."""
    return (y >= -1) & (y <= height) & (x >= -1) & (x <= width)


def neighbours(place, size):
    """The rows, or columns, before and after each place; both the border's beyond it."""
    before = place.clamp(0, size - 1).floor().long()
    return before, (before + 1).clamp(max=size - 1)
