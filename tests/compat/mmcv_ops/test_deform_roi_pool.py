import math

import pytest
import torch
from mmcv.ops import DeformRoIPoolPack, ModulatedDeformRoIPoolPack, RoIAlign, deform_roi_pool
from op_checks import check_rounded_once, check_same_with_gradients

SCALE, GAMMA = 0.5, 0.25
ROIS = torch.tensor(
    [
        [0, 2.1, 1.3, 11.7, 9.2],
        [1, -6, -5, 8, 7],  # starts off the map, its samples on its edge and on cells
        [1, 5.2, 4.1, 19.37, 17.3],  # ends off the map
        [0, 3, 3, 3, 3],  # without area
        [1, 40, 40, 50, 50],  # wholly off the map
    ],
    dtype=torch.float64,
)


def operands():
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    offset = torch.randn(len(ROIS), 2, 3, 2, generator=generator, dtype=torch.float64)
    return input.requires_grad_(), offset.requires_grad_()


def sample(plane, y, x):
    """Value (C,) of (C, H, W) at a place, with mmcv's slopes.

    They go on below the first cell's centre, where the values do not, and end at the last one's.
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


def reference(input, rois, offset, sampling_ratio):
    """Dai et al. (2017), equation 5, with RoIAlign's samples."""
    outputs = []
    for k, (index, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * SCALE - 0.5 for corner in corners)
        width, height = x2 - x1, y2 - y1
        count_y = sampling_ratio or math.ceil(height / 3)
        count_x = sampling_ratio or math.ceil(width / 2)
        for row in range(3):
            for column in range(2):
                dx, dy = offset[k, :, row, column] if offset is not None else torch.zeros(2)
                total = input.new_zeros(input.size(1))
                for i in range(count_y):
                    for j in range(count_x):
                        y = y1 + GAMMA * height * dy + (row + (i + 0.5) / count_y) * height / 3
                        x = x1 + GAMMA * width * dx + (column + (j + 0.5) / count_x) * width / 2
                        total = total + sample(input[int(index)], y, x)
                outputs.append(total / max(count_y * count_x, 1))
    return torch.stack(outputs).view(len(rois), 3, 2, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_values_and_gradients(sampling_ratio):
    input, offset = operands()
    actual = deform_roi_pool(input, ROIS, offset, (3, 2), SCALE, sampling_ratio, GAMMA)
    expected = reference(input, ROIS, offset, sampling_ratio)
    check_same_with_gradients(actual, expected, [input, offset])


def test_gradients_are_the_values_slopes_within_the_map():
    input, offset = operands()
    rois = torch.tensor([[1, 2.3, 2.9, 8.1, 9.7]], dtype=torch.float64)
    offset = (offset[:1].detach() * 0.3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda *x: deform_roi_pool(x[0], rois, x[1], (3, 2), SCALE, 2, GAMMA), (input, offset)
    )


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_without_offsets_it_is_roi_align(sampling_ratio):
    input, _ = operands()
    actual = deform_roi_pool(input, ROIS, None, (3, 2), SCALE, sampling_ratio)
    expected = RoIAlign((3, 2), SCALE, sampling_ratio)(input, ROIS)
    check_same_with_gradients(actual, expected, [input])


def test_no_rois():
    input, offset = operands()
    output = deform_roi_pool(input, ROIS[:0], offset[:0], (3, 2), SCALE)
    output.sum().backward()
    assert output.shape == (0, 3, 3, 2)
    assert not input.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    def pool(input, offset):
        rois = ROIS.to(dtype).to(input.dtype)
        return deform_roi_pool(input, rois, offset, (3, 2), SCALE, 2, GAMMA)

    check_rounded_once(pool, operands(), dtype)


@pytest.mark.parametrize("packed", [DeformRoIPoolPack, ModulatedDeformRoIPoolPack])
def test_packed_layers_start_as_roi_align_and_learn(packed):
    """They predict their offsets, from 0; the modulated one's mask starts at 1/2."""
    input, rois = operands()[0].float(), ROIS.float()
    layer = packed((3, 2), 3, 8, SCALE, 2)
    output = layer(input, rois)
    factor = 0.5 if packed is ModulatedDeformRoIPoolPack else 1
    torch.testing.assert_close(output, factor * RoIAlign((3, 2), SCALE, 2)(input, rois))
    output.square().sum().backward()
    assert all(p.grad.any() for p in layer.offset_fc[-1].parameters())
