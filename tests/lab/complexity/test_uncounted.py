"""What has no formula is named; what is cheap is not."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from flatten_det.lab.complexity import SAMPLING, count_macs
from flatten_det.lab.complexity.counter import CHEAP


@torch.library.custom_op("flatten_det_tests::mystery", mutates_args=())
def mystery(x: torch.Tensor) -> torch.Tensor:
    """An operator that nothing is known of."""
    return x.clone()


def count(call):
    return count_macs(nn.Identity(), call)


def test_foreign_operators_are_named():
    x = torch.zeros(3)
    counted = count(lambda: [mystery(x), mystery(x), x + 1])
    assert counted.uncounted == {"flatten_det_tests.mystery": 2}


def test_sampling_is_named():
    maps, grid = torch.zeros(1, 4, 8, 8), torch.zeros(1, 5, 5, 2)
    boxes = torch.tensor([[0.0, 1.0, 1.0, 5.0, 5.0]])
    counted = count(
        lambda: [
            F.grid_sample(maps, grid, align_corners=False),
            torchvision.ops.roi_align(maps, boxes, 3),
        ]
    )
    assert counted.uncounted == {"aten.grid_sampler_2d": 1, "torchvision.roi_align": 1}
    assert counted.uncounted.keys() <= SAMPLING
    assert counted.macs == 0


def test_products_without_a_formula_are_named():
    x = torch.eye(4)
    names = count(lambda: [torch.linalg.inv(x), torch.cdist(x, x), torch.fft.fft(x)]).uncounted
    assert len(names) >= 3
    assert any("inv" in name for name in names)
    assert any("fft" in name for name in names)


def test_cheap_operators_are_not_named():
    x = torch.rand(2, 8, 6, 6)

    def call():
        y = F.gelu(F.layer_norm(x, (6,))).relu_().softmax(-1)
        y = F.interpolate(y, scale_factor=2, mode="bilinear") + F.interpolate(y, size=(12, 12))
        y = F.adaptive_avg_pool2d(F.max_pool2d(y, 2), 1).flatten().clamp(min=0) ** 3
        y = torch.cat([y, y.flip(0)]).masked_fill_(torch.zeros(32, dtype=torch.bool), 1.0)
        return y[torch.arange(3)].sum().item()

    counted = count(call)
    assert counted.uncounted == {}
    assert counted.macs == 0


def test_cheap_names_are_operators():
    assert not [name for name in CHEAP if not hasattr(torch.ops.aten, name)]


@pytest.mark.parametrize("groups", [1, 2])
def test_deformable_convolution_counts_as_a_convolution(groups):
    x, offset = torch.zeros(1, 4, 9, 7), torch.zeros(1, 18, 9, 7)
    weight = torch.zeros(6, 4 // groups, 3, 3)
    deformed = count(lambda: torchvision.ops.deform_conv2d(x, offset, weight, padding=1))
    plain = count(lambda: F.conv2d(x, weight, padding=1, groups=groups))
    assert deformed.macs == plain.macs == 6 * 63 * 9 * 4 // groups
    assert deformed.macs_by_operator == {"torchvision.deform_conv2d": deformed.macs}
    assert not deformed.uncounted


def test_products_with_vectors():
    matrix, vector = torch.zeros(5, 7), torch.zeros(7)
    assert count(lambda: matrix @ vector).macs == 35
    assert count(lambda: vector @ vector).macs == 7


def test_einsum_counts_as_its_product():
    x, y = torch.zeros(2, 5, 3), torch.zeros(2, 3, 4, 6)
    counted = count(lambda: torch.einsum("bqc,bchw->bqhw", x, y))
    assert counted.macs == 2 * 5 * 3 * 24
    assert not counted.uncounted
