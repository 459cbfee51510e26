import math

import pytest
import torch
from mmcv import _ext
from mmcv.ops import RoIAlign
from op_checks import check_same_with_gradients

SCALE = 0.5
# No sample may fall on the edge of the map, where rounding decides whether it counts.
ROIS = torch.tensor(
    [
        [0, 2.1, 1.3, 11.7, 9.2],
        [1, -6.17, -5.39, 8.4, 7.9],  # starts off the map
        [1, 5.2, 4.1, 19.37, 17.3],  # ends off the map
        [0, 3.3, 3.9, 4.1, 4.4],  # smaller than a cell
        [1, -40.0, -40.0, -30.0, -30.0],  # wholly off the map
    ],
    dtype=torch.float64,
)


def features(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64).to(dtype)


def bilinear(plane, y, x):
    """Value (C,) of (C, H, W) at a place; the border reaches one cell out, then there is 0."""
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.size(0))
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    top = plane[:, y0, x0] * (1 - (x - x0)) + plane[:, y0, x1] * (x - x0)
    bottom = plane[:, y1, x0] * (1 - (x - x0)) + plane[:, y1, x1] * (x - x0)
    return top * (1 - (y - y0)) + bottom * (y - y0)


def reference(input, rois, output_size, sampling_ratio, pool_mode, aligned):
    """RoIAlign as in the paper: bins, evenly spread samples in each, their mean or maximum."""
    pooled_h, pooled_w = output_size
    shift = 0.5 if aligned else 0.0
    outputs = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * SCALE - shift for corner in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        bin_h, bin_w = height / pooled_h, width / pooled_w
        count_y = sampling_ratio or math.ceil(bin_h)
        count_x = sampling_ratio or math.ceil(bin_w)
        for row in range(pooled_h):
            for column in range(pooled_w):
                ys = [y1 + (row + (i + 0.5) / count_y) * bin_h for i in range(count_y)]
                xs = [x1 + (column + (j + 0.5) / count_x) * bin_w for j in range(count_x)]
                samples = torch.stack([bilinear(input[int(index)], y, x) for y in ys for x in xs])
                outputs.append(samples.mean(0) if pool_mode == "avg" else samples.amax(0))
    return torch.stack(outputs).view(len(rois), pooled_h, pooled_w, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_values_and_gradients(pool_mode, sampling_ratio, aligned):
    input = features().requires_grad_()
    layer = RoIAlign((2, 3), SCALE, sampling_ratio, pool_mode, aligned)
    expected = reference(input, ROIS, (2, 3), sampling_ratio, pool_mode, aligned)

    check_same_with_gradients(layer(input, ROIS), expected, [input])


@pytest.mark.parametrize("rois", [[], [[0, 3, 3, 3, 3]]], ids=["none", "one without area"])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_rois_of_nothing_give_zeros_and_no_gradient(pool_mode, rois):
    input = features().requires_grad_()
    output = RoIAlign(2, 1.0, 0, pool_mode)(input, ROIS.new_tensor(rois).reshape(-1, 5))
    output.sum().backward()
    assert output.shape == (len(rois), 3, 2, 2)
    assert not output.any()
    assert not input.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_half_precision_is_rounded_once(pool_mode, dtype):
    input, rois = features(dtype), ROIS.to(dtype)
    layer = RoIAlign((2, 3), SCALE, 2, pool_mode)
    expected = layer(input.float(), rois.float()).to(dtype)
    assert torch.equal(layer(input, rois), expected)


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize(
    ("y", "x", "cell"),
    [
        (-1, 2, (0, 2)),
        (2, -1, (2, 0)),
        (6, 7, (5, 6)),
        (5, 6, (5, 6)),
        (0, 0, (0, 0)),
        (3, 4, (3, 4)),
    ],
)
def test_samples_on_cells_and_on_the_edge_of_the_map(y, x, cell, pool_mode):
    """Up to the edge the border is read. A maximum at y = -1 learns nothing: mmcv marks none so."""
    input = features().add(9).requires_grad_()
    roi = torch.tensor([[0.0, x - 1, y - 1, x + 1, y + 1]], dtype=torch.float64)
    output = RoIAlign(1, 1.0, 1, pool_mode, aligned=False)(input, roi)
    output.sum().backward()
    assert torch.equal(output[0, :, 0, 0], input[(0, slice(None), *cell)])
    expected = torch.zeros_like(input)
    expected[(0, slice(None), *cell)] = pool_mode == "avg" or y != -1
    assert torch.equal(input.grad, expected)


@pytest.mark.parametrize("pool_mode", [0, 1])
def test_backward_adds_to_what_the_caller_holds(pool_mode):
    upstream = torch.ones(2, 3, 2, 2, dtype=torch.float64)
    options = dict(aligned_height=2, aligned_width=2, spatial_scale=SCALE, sampling_ratio=2)
    options |= dict(pool_mode=pool_mode, aligned=True)
    results = []
    for start in (0.0, 1.0):
        grad_input = torch.full((2, 3, 6, 7), start, dtype=torch.float64)
        argmax = 1.5 * upstream
        _ext.roi_align_backward(upstream, ROIS[:2], argmax, argmax, grad_input, **options)
        results.append(grad_input)
    assert results[0].any()
    torch.testing.assert_close(results[1], results[0] + 1)
