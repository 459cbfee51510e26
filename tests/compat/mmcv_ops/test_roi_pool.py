import math

import pytest
import torch
from mmcv.ops import RoIPool
from op_checks import check_same_with_gradients

ROIS = torch.tensor(
    [
        [0, 1, 2, 10, 9],
        [1, -7, -6, 8, 7],  # starts off the map
        [1, 5, 4, 30, 27],  # ends off the map
        [0, 3, 3, 3, 3],  # one pixel
        [0, 40, 40, 50, 50],  # wholly off the map
        [1, 9, 2, 4, 8],  # corners swapped
    ],
    dtype=torch.float64,
)


def reference(input, rois, pooled_h, pooled_w, scale):
    height, width = input.shape[2:]
    output = []
    for index, x1, y1, x2, y2 in rois.tolist():
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for row in range(pooled_h):
            for column in range(pooled_w):
                top = max(math.floor(y1 + row * (y2 - y1) / pooled_h), 0)
                bottom = min(math.ceil(y1 + (row + 1) * (y2 - y1) / pooled_h), height)
                left = max(math.floor(x1 + column * (x2 - x1) / pooled_w), 0)
                right = min(math.ceil(x1 + (column + 1) * (x2 - x1) / pooled_w), width)
                if top < bottom and left < right and x1 < x2 and y1 < y2:
                    output.append(input[int(index), :, top:bottom, left:right].amax((1, 2)))
                else:
                    output.append(input.new_zeros(input.size(1)))
    return torch.stack(output).view(len(rois), pooled_h, pooled_w, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_values_and_gradients(scale):
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 9, 8, generator=generator, dtype=torch.float64).requires_grad_()
    expected = reference(input, ROIS, 3, 2, scale)
    check_same_with_gradients(RoIPool((3, 2), scale)(input, ROIS), expected, [input])


def test_no_rois():
    assert RoIPool(2)(torch.rand(1, 3, 4, 4), torch.zeros(0, 5)).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_exact_maxima(dtype):
    input, rois = torch.randn(2, 3, 9, 8).to(dtype), ROIS.to(dtype)
    assert torch.equal(
        RoIPool(2, 0.5)(input, rois), RoIPool(2, 0.5)(input.float(), rois.float()).to(dtype)
    )
