import math

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.ops.multi_scale_deform_attn import (
    MultiScaleDeformableAttnFunction,
    multi_scale_deformable_attn_pytorch,
)
from op_checks import check_rounded_once, check_same_with_gradients

SHAPES = torch.tensor([[6, 5], [3, 4], [1, 2]])
STARTS = torch.tensor([0, 30, 42])


def operands():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 44, 2, 4, generator=generator, dtype=torch.float64)
    # Some locations lie off the map.
    locations = torch.rand(2, 7, 2, 3, 5, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(2, 7, 2, 3, 5, generator=generator, dtype=torch.float64)
    return [x.requires_grad_() for x in (value, locations, weights)]


def attend(value, locations, weights):
    return MultiScaleDeformableAttnFunction.apply(value, SHAPES, STARTS, locations, weights, 64)


def loops(value, locations, weights):
    """Zhu et al. (2021), equation 3, one sample at a time."""
    output = torch.zeros(2, 7, 2, 4, dtype=torch.float64)
    for b, q, m, level, p in torch.cartesian_prod(
        *(torch.arange(n) for n in locations.shape[:5])
    ).tolist():
        height, width = SHAPES[level].tolist()
        x, y = locations[b, q, m, level, p] * torch.tensor([width, height]) - 0.5
        if not (-1 < y < height and -1 < x < width):
            continue
        y0, x0 = math.floor(y.detach()), math.floor(x.detach())
        for row, share_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
            for column, share_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
                if 0 <= row < height and 0 <= column < width:
                    key = int(STARTS[level]) + row * width + column
                    share = weights[b, q, m, level, p] * share_y * share_x
                    output[b, q, m] += share * value[b, key, m]
    return output.flatten(2)


def test_values_are_the_sampled_sum():
    inputs = [x.detach() for x in operands()]
    torch.testing.assert_close(attend(*inputs), loops(*inputs))


def test_gradients_are_those_of_mmcvs_python_version():
    inputs = operands()
    expected = multi_scale_deformable_attn_pytorch(inputs[0], SHAPES, *inputs[1:])
    check_same_with_gradients(attend(*inputs), expected, inputs)


def test_gradients_on_cells_and_on_the_edges_of_the_maps():
    """On a cell's centre the slope after it counts; at exactly -1, H or W there is none."""
    inputs = operands()
    size = SHAPES.flip(1).view(1, 1, 1, 3, 1, 2)
    with torch.no_grad():
        places = (inputs[1] * size - 0.5).round()
        inputs[1].copy_((places + 0.5) / size)
    assert (places == -1).any()
    assert (places == size).any()
    check_same_with_gradients(attend(*inputs), loops(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    check_rounded_once(attend, operands(), dtype)


def test_the_layer_runs_and_learns():
    layer = MultiScaleDeformableAttention(embed_dims=16, num_heads=2, num_levels=3, num_points=2)
    layer.init_weights()
    query = torch.randn(7, 2, 16)
    value = torch.randn(44, 2, 16)
    output = layer(
        query,
        value=value,
        reference_points=torch.rand(2, 7, 3, 2),
        spatial_shapes=SHAPES,
        level_start_index=STARTS,
    )
    output.square().sum().backward()
    assert output.shape == (7, 2, 16)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
