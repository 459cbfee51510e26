import pytest
import torch
from mmcv.ops import PSAMask
from op_checks import check_same_with_gradients


def reference(input, psa_type, mask_height, mask_width):
    batch, _, height, width = input.shape
    output = input.new_zeros(batch, height * width, height, width)
    for y in range(height):
        for x in range(width):
            for channel in range(mask_height * mask_width):
                to_y = y + channel // mask_width - (mask_height - 1) // 2
                to_x = x + channel % mask_width - (mask_width - 1) // 2
                if 0 <= to_y < height and 0 <= to_x < width:
                    if psa_type == "collect":
                        output[:, to_y * width + to_x, y, x] = input[:, channel, y, x]
                    else:
                        output[:, y * width + x, to_y, to_x] = input[:, channel, y, x]
    return output


@pytest.mark.parametrize("mask_size", [(3, 5), (7, 3), (9, 11)])
@pytest.mark.parametrize("psa_type", ["collect", "distribute"])
def test_values_and_gradients(psa_type, mask_size):
    input = torch.randn(2, mask_size[0] * mask_size[1], 4, 5, dtype=torch.float64)
    input.requires_grad_()
    expected = reference(input, psa_type, *mask_size)
    check_same_with_gradients(PSAMask(psa_type, mask_size)(input), expected, [input])
