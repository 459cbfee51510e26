"""RoIAlign, deformable RoI pooling and RoIPool against loops over bins and samples."""

import itertools
import math

import pytest
import torch
from mmcv import _ext
from mmcv.ops import (
    DeformRoIPoolPack,
    ModulatedDeformRoIPoolPack,
    RoIAlign,
    RoIPool,
    deform_roi_pool,
)
from op_checks import check_rounded_once, check_same_with_gradients

SCALE, GAMMA = 0.5, 0.25


def rois_of(*rois):
    return torch.tensor(rois, dtype=torch.float64).reshape(-1, 5)


# No sample may fall on the edge of the map, where rounding decides whether it counts.
ROIS = rois_of(
    [0, 2.1, 1.3, 11.7, 9.2],
    [1, -6.17, -5.39, 8.4, 7.9],  # starts off the map
    [1, 5.2, 4.1, 19.37, 17.3],  # ends off the map
    [0, 3.3, 3.9, 4.1, 4.4],  # smaller than a cell
    [1, -40, -40, -30, -30],  # wholly off the map
)
MOVED_ROIS = rois_of(
    ROIS[0].tolist(),
    [1, -6, -5, 8, 7],  # starts off the map, its samples on its edge and on cells
    ROIS[2].tolist(),
    [0, 3, 3, 3, 3],  # without area
    [1, 40, 40, 50, 50],  # wholly off the map
)
POOLED_ROIS = rois_of(
    [0, 1, 2, 10, 9],
    [1, -7, -6, 8, 7],  # starts off the map
    [1, 5, 4, 30, 27],  # ends off the map
    [0, 3, 3, 3, 3],  # one pixel
    [0, 40, 40, 50, 50],  # wholly off the map
    [1, 9, 2, 4, 8],  # corners swapped
)


def operands():
    """Features (2, 3, 6, 7), and offsets of 3 x 2 bins of each of MOVED_ROIS."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    offset = torch.randn(len(MOVED_ROIS), 2, 3, 2, generator=generator, dtype=torch.float64)
    return input.requires_grad_(), offset.requires_grad_()


def sample(plane, y, x):
    """Value (C,) of (C, H, W) at a place; the border reaches one cell out, then there is 0.

    Slopes are mmcv's: they go on below the first cell's centre, where the values do not, and end at the last
    one's.
    """
    height, width = plane.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(plane.size(0))
    at_y, at_x = min(max(y.item(), 0), height - 1), min(max(x.item(), 0), width - 1)
    y0, x0 = int(at_y), int(at_x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    a, b, c, d = plane[:, y0, x0], plane[:, y0, x1], plane[:, y1, x0], plane[:, y1, x1]
    top, bottom = a + (b - a) * (at_x - x0), c + (d - c) * (at_x - x0)
    value = top + (bottom - top) * (at_y - y0)
    slope_x = ((d - c) * (y - y0) + (b - a) * (y1 - y)).detach()
    slope_y = ((d - b) * (x - x0) + (c - a) * (x1 - x)).detach()
    return value + slope_x * (x - x.detach()) + slope_y * (y - y.detach())


def reference(input, rois, size, sampling_ratio, pool_mode="avg", aligned=True, offset=None):
    """RoIAlign: bins, evenly spread samples in each, their mean or maximum.

    Bins are moved as in Dai et al. (2017), equation 5.
    """
    outputs = []
    for k, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * SCALE - (0.5 if aligned else 0.0) for corner in corners)
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        count_y = sampling_ratio or math.ceil(bin_h)
        count_x = sampling_ratio or math.ceil(bin_w)
        for row, column in itertools.product(*map(range, size)):
            dx, dy = input.new_zeros(2) if offset is None else GAMMA * offset[k, :, row, column]
            found = [input.new_zeros(input.size(1))] * (count_y * count_x == 0)
            for i, j in itertools.product(range(count_y), range(count_x)):
                y = y1 + height * dy + (row + (i + 0.5) / count_y) * bin_h
                x = x1 + width * dx + (column + (j + 0.5) / count_x) * bin_w
                found.append(sample(input[int(index)], y, x))
            found = torch.stack(found)
            outputs.append(found.mean(0) if pool_mode == "avg" else found.amax(0))
    return torch.stack(outputs).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("pool_mode", ["avg", "max"])
def test_roi_align(pool_mode, sampling_ratio, aligned):
    input, _ = operands()
    layer = RoIAlign((2, 3), SCALE, sampling_ratio, pool_mode, aligned)
    expected = reference(input, ROIS, (2, 3), sampling_ratio, pool_mode, aligned)
    check_same_with_gradients(layer(input, ROIS), expected, [input])


@pytest.mark.parametrize("rois", [[], [[0, 3, 3, 3, 3]]], ids=["none", "one without area"])
@pytest.mark.parametrize(
    "op",
    [
        RoIAlign(2, 1.0, 0, "avg"),
        RoIAlign(2, 1.0, 0, "max"),
        lambda input, rois: deform_roi_pool(input, rois, input.new_zeros(len(rois), 2, 2, 2), 2),
    ],
)
def test_rois_of_nothing_give_zeros_and_no_gradient(op, rois):
    input, _ = operands()
    output = op(input, rois_of(*rois))
    output.sum().backward()
    assert output.shape == (len(rois), 3, 2, 2)
    assert not output.any()
    assert not input.grad.any()


@pytest.mark.parametrize("pool_mode", ["avg", "max"])
@pytest.mark.parametrize(
    ("y", "x", "cell"),
    [(-1, 2, (0, 2)), (2, -1, (2, 0)), (6, 7, (5, 6)), (5, 6, (5, 6)), (0, 0, (0, 0))]
    + [(3, 4, (3, 4))],
)
def test_samples_on_cells_and_on_the_edge_of_the_map(y, x, cell, pool_mode):
    """Up to the edge the border is read. A maximum at y = -1 learns nothing: mmcv marks none so."""
    input = operands()[0].detach().add(9).requires_grad_()
    roi = rois_of([0, x - 1, y - 1, x + 1, y + 1])
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


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_deform_roi_pool(sampling_ratio):
    input, offset = operands()
    actual = deform_roi_pool(input, MOVED_ROIS, offset, (3, 2), SCALE, sampling_ratio, GAMMA)
    expected = reference(input, MOVED_ROIS, (3, 2), sampling_ratio, offset=offset)
    check_same_with_gradients(actual, expected, [input, offset])


def test_gradients_are_the_values_slopes_within_the_map():
    input, offset = operands()
    rois = rois_of([1, 2.3, 2.9, 8.1, 9.7])
    offset = (offset[:1].detach() * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: deform_roi_pool(x[0], rois, x[1], (3, 2), SCALE, 2, GAMMA), (input, offset)
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_without_offsets_it_is_roi_align(sampling_ratio):
    input, _ = operands()
    actual = deform_roi_pool(input, MOVED_ROIS, None, (3, 2), SCALE, sampling_ratio)
    expected = RoIAlign((3, 2), SCALE, sampling_ratio)(input, MOVED_ROIS)
    check_same_with_gradients(actual, expected, [input])


@pytest.mark.parametrize("packed", [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_packed_layers_start_as_roi_align_and_learn(packed):
    """They predict their offsets, from 0; the modulated one's mask starts at 1/2."""
    input, rois = operands()[0].float(), MOVED_ROIS.float()
    layer = packed((3, 2), 3, 8, SCALE, 2)
    output = layer(input, rois)
    factor = 0.5 if packed is ModulatedDeformRoIPoolPack else 1
    torch.testing.assert_close(output, factor * RoIAlign((3, 2), SCALE, 2)(input, rois))
    output.square().sum().backward()
    assert all(p.grad.any() for p in layer.offset_fc[-1].parameters())


def pooled(input, rois, size, scale):
    """RoIPool: the maximum of every cell that a bin touches."""
    height, width = input.shape[2:]
    output = []
    for index, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for row, column in itertools.product(*map(range, size)):
            top = max(math.floor(y1 + row * (y2 - y1) / size[0]), 0)
            bottom = min(math.ceil(y1 + (row + 1) * (y2 - y1) / size[0]), height)
            left = max(math.floor(x1 + column * (x2 - x1) / size[1]), 0)
            right = min(math.ceil(x1 + (column + 1) * (x2 - x1) / size[1]), width)
            if top < bottom and left < right and x1 < x2 and y1 < y2:
                output.append(input[int(index), :, top:bottom, left:right].amax((1, 2)))
            else:
                output.append(input.new_zeros(input.size(1)))
    return torch.stack(output).view(len(rois), *size, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_roi_pool(scale):
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64).requires_grad_()
    expected = pooled(input, POOLED_ROIS, (3, 2), scale)
    check_same_with_gradients(RoIPool((3, 2), scale)(input, POOLED_ROIS), expected, [input])


def test_roi_pool_of_no_rois():
    assert RoIPool(2)(torch.rand(1, 3, 4, 4), torch.zeros(0, 5)).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", ["avg", "max", "deform", "pool"])
def test_half_precision_is_rounded_once(op, dtype):
    def pool(input, *offset):
        rois = (MOVED_ROIS if offset else ROIS).to(dtype).to(input.dtype)
        if offset:
            return deform_roi_pool(input, rois, *offset, (3, 2), SCALE, 2, GAMMA)
        layer = RoIPool(2, SCALE) if op == "pool" else RoIAlign((2, 3), SCALE, 2, op)
        return layer(input, rois)

    input, offset = operands()
    if op == "max":  # The places of the maxima are kept in half precision: outputs alone.
        input = input.to(dtype)
        assert torch.equal(pool(input), pool(input.float()).to(dtype))
    else:
        check_rounded_once(pool, [input, offset] if op == "deform" else [input], dtype)
