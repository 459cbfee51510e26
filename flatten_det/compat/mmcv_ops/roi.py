"""RoIAlign (He et al., 2017), deformable RoI pooling (Dai et al., 2017) and RoIPool (Girshick, 2015).

Features are (N, C, H, W), RoIs (K, 5) ``batch index, x1, y1, x2, y2`` in image pixels, outputs
(K, C, PH, PW).

- RoIAlign pools each bin's bilinear samples by average, which is torchvision's operator, or by maximum,
  which torchvision has not.
- Deformable pooling is RoIAlign's average, with every bin moved by an offset. Offsets are (K, 2, PH, PW), x
  before y; an empty tensor stands for none.
- RoIPool has mmcv's bins, which are not rounded as torchvision's are: a RoI covers ``x1 * scale`` to
  ``(x2 + 1) * scale``, and each bin takes every cell that it touches, so neighbouring bins may share cells.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

from .precision import at_least_float32

_MAX = 0


def roi_align_forward(input, rois, output, argmax_y, argmax_x, pool_mode, **geometry):
    """Pool each RoI into ``output`` (K, C, PH, PW).

    Args:
        argmax_y, argmax_x: filled, as ``output``, with the place of each maximum on the feature map; empty
            for average pooling.
        pool_mode: 0 for the maximum, 1 for the average.
        geometry: ``aligned_height`` and ``aligned_width``, PH and PW; ``spatial_scale``: feature cells per
            image pixel; ``sampling_ratio``: samples per bin and direction, 0 for about one per feature cell;
            ``aligned``: whether a cell's centre is at half a cell, not at its corner.
    """
    features = at_least_float32(input)
    rois = rois.to(features.dtype)
    geometry = _geometry(**geometry)
    if pool_mode == _MAX:
        found = _max_over_samples(features, rois, _SampleGrid(rois, *geometry))
        for target, source in zip((output, argmax_y, argmax_x), found, strict=True):
            target.copy_(source.transpose(1, 2).view_as(target))
    else:
        output.copy_(torch.ops.torchvision.roi_align(features, rois, *geometry))


def roi_align_backward(grad_output, rois, argmax_y, argmax_x, grad_input, pool_mode, **geometry):
    """Add the gradient of the features to ``grad_input`` (N, C, H, W)."""
    grad = at_least_float32(grad_output)
    rois = rois.to(grad.dtype)
    if pool_mode == _MAX:
        grad_input += _max_backward(grad, rois, argmax_y, argmax_x, grad_input.shape)
    else:
        *scale_and_size, ratio, aligned = _geometry(**geometry)
        grad_input += torch.ops.torchvision._roi_align_backward(
            grad, rois, *scale_and_size, *grad_input.shape, ratio, aligned
        )


def _geometry(aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned):
    """The numbers that mmcv passes by name, as torchvision takes them."""
    return spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned


class _SampleGrid:
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
    height, width = features.shape[2:]
    cells, first_cell = _cells(features, rois)
    shape = (rois.size(0), grid.pooled_height * grid.pooled_width, cells.size(1))
    best = features.new_full(shape, -torch.inf)
    best_y, best_x = features.new_full(shape, -1), features.new_full(shape, -1)
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
    """Gradient of the features (N, C, H, W): each output's goes to the cells its sample read.

    A maximum at exactly -1 takes none, because the extension marks bins without samples so.
    """
    grad = grad.masked_fill(argmax_y == -1, 0)
    grad_input = grad.new_zeros(shape)
    for cell, weight in _bilinear(argmax_y, argmax_x, *shape[2:]):
        _add_at(grad_input, rois, cell, grad * weight)
    return grad_input


def deform_roi_pool_forward(input, rois, offset, output, **geometry):
    """Pool each RoI into ``output``; 0 for a RoI without samples. ``geometry`` is :func:`_moved_grid`'s."""
    cells, first_cell = _cells(input, rois)
    grid = _moved_grid(rois, offset, **geometry)
    total = cells.new_zeros(rois.size(0), grid.pooled_height * grid.pooled_width, cells.size(1))
    for roi, y, x in grid.samples():
        for cell, weight in _bilinear(y, x, *input.shape[2:]):
            total[roi] += cells[first_cell[roi] + cell] * weight.unsqueeze(2)
    total /= (grid.count_y * grid.count_x).clamp(min=1)
    output.copy_(total.transpose(1, 2).view_as(output))


def deform_roi_pool_backward(
    grad_output, input, rois, offset, grad_input, grad_offset, gamma, **geometry
):
    """Add the gradients of the features and the offsets to ``grad_input`` and ``grad_offset``."""
    height, width = input.shape[2:]
    cells, first_cell = _cells(input, rois)
    grid = _moved_grid(rois, offset, gamma, **geometry)
    grad = at_least_float32(grad_output).flatten(2).transpose(1, 2)  # [K, PH * PW, C]
    grad = grad / (grid.count_y * grid.count_x)
    d_cells = cells.new_zeros(cells.shape)
    d_offset = cells.new_zeros(rois.size(0), 2, grad.size(1))
    for roi, y, x in grid.samples():
        corners = []
        for cell, weight in _bilinear(y, x, height, width):
            index = first_cell[roi] + cell
            d_cells.index_add_(0, index.flatten(), (grad[roi] * weight.unsqueeze(2)).flatten(0, 1))
            corners.append((cells[index] * grad[roi]).sum(2))
        if offset.numel():
            d_offset[roi] += _slopes(y, x, corners, height, width)
    grad_input += d_cells.unflatten(0, (input.size(0), height, width)).permute(0, 3, 1, 2)
    if offset.numel():
        unit = gamma * torch.cat([grid.width, grid.height], 1)  # [K, 2, 1]
        grad_offset += (unit * d_offset).view_as(grad_offset)


def _moved_grid(rois, offset, gamma, pooled_height, pooled_width, spatial_scale, sampling_ratio):
    """RoIAlign's samples, moved by the offsets; of 1, by ``gamma`` times the RoI's size."""
    rois = at_least_float32(rois)
    grid = _SampleGrid(rois, spatial_scale, pooled_height, pooled_width, sampling_ratio, True)
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
    (y0, y1), (x0, x1) = _neighbours(y, height), _neighbours(x, width)
    along_x = (bottom_right - bottom_left) * (y - y0) + (top_right - top_left) * (y1 - y)
    along_y = (bottom_right - top_right) * (x - x0) + (bottom_left - top_left) * (x1 - x)
    inside = _on_map(y, x, height, width)
    return torch.stack([along_x * inside, along_y * inside], 1)


def roi_pool_forward(input, rois, output, argmax, pooled_height, pooled_width, spatial_scale):
    """Write the maximum of each bin to ``output`` and its cell, ``row * W + column``, to ``argmax``.

    They are 0 and -1 in a bin without cells. RoIs include their corners.
    """
    if rois.size(0) == 0:
        return
    height, width = input.shape[2:]
    cells, first_cell = _cells(input, rois)
    first_cell = first_cell.unsqueeze(2)
    rois = rois.to(cells.dtype)
    x1, x2 = _bins(rois[:, 1], rois[:, 3], spatial_scale, pooled_width, width)
    y1, y2 = _bins(rois[:, 2], rois[:, 4], spatial_scale, pooled_height, height)
    bin_width, bin_height = (x2 - x1).amax(1), (y2 - y1).amax(1)

    shape = (rois.size(0), pooled_height, pooled_width, cells.size(1))
    best = cells.new_full(shape, -torch.inf)
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
    grad = at_least_float32(grad_output).masked_fill(argmax < 0, 0)
    total = grad.new_zeros(grad_input.shape)
    _add_at(total, rois, argmax.clamp(min=0), grad)
    grad_input += total


def _bins(low, high, scale, count, size):
    """First cell and end of each bin, (K, count) each, within [0, size]; no cells for a RoI whose
    high corner lies before its low one."""
    low, high = low.unsqueeze(1) * scale, (high.unsqueeze(1) + 1) * scale
    step = (high - low) / count
    edge = torch.arange(count, device=low.device)
    first = (edge * step + low).floor().clamp(0, size).long()
    end = ((edge + 1) * step + low).ceil().clamp(0, size).long()
    return first, torch.where(high > low, end, first)


def _cells(input, rois):
    """The features as (N * H * W, C), and each RoI's first cell in them, (K, 1)."""
    _, channels, height, width = input.shape
    cells = at_least_float32(input).permute(0, 2, 3, 1).reshape(-1, channels)
    return cells, rois[:, :1].long() * (height * width)


def _add_at(maps, rois, cell, values):
    """Add ``values`` (K, C, PH, PW) to the cells, of the same shape, that each has in its RoI's image.

    ``maps`` is (N, C, H, W), ``cell`` the index ``row * W + column``.
    """
    channels, height, width = maps.shape[1:]
    channel = torch.arange(channels, device=values.device).view(1, -1, 1, 1)
    plane = rois[:, 0].long().view(-1, 1, 1, 1) * channels + channel
    index = plane * (height * width) + cell
    maps.view(-1).index_add_(0, index.flatten(), values.flatten())


def _bilinear(y, x, height, width):
    """Yield the four cells (index ``row * width + column``) around each place, with their weights.

    A place up to a cell off the map reads the border, one further off reads 0.
    """
    inside = _on_map(y, x, height, width)
    (y0, y1), (x0, x1) = _neighbours(y, height), _neighbours(x, width)
    fy, fx = y.clamp(0, height - 1) - y0, x.clamp(0, width - 1) - x0
    for row, weight_y in ((y0, 1 - fy), (y1, fy)):
        for column, weight_x in ((x0, 1 - fx), (x1, fx)):
            yield row * width + column, weight_y * weight_x * inside


def _on_map(y, x, height, width):
    """Whether each place lies on the map or at most a cell off it."""
    return (y >= -1) & (y <= height) & (x >= -1) & (x <= width)


def _neighbours(place, size):
    """The rows, or columns, before and after each place; both the border's beyond it."""
    before = place.clamp(0, size - 1).floor().long()
    return before, (before + 1).clamp(max=size - 1)
