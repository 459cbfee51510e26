"""Multiply-adds worked out by hand; what has no formula is named, what is cheap is not."""

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


def test_linear_and_depthwise_convolution():
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(2), nn.Linear(30, 7))
    counted = count_macs(module, lambda: module(torch.zeros(1, 8, 5, 6)))
    assert counted.parameters == 8 * 9 + 8 + 30 * 7 + 7
    assert counted.macs_by_module == {"": 8 * 30 * 9 + 8 * 30 * 7, "0": 8 * 30 * 9, "2": 8 * 30 * 7}
    assert counted.macs == 8 * 30 * 9 + 8 * 30 * 7


@pytest.mark.parametrize("mask", [None, torch.zeros(11, 5)], ids=["plain", "masked"])
def test_fused_attention_counts_as_its_two_products(mask):
    q, k = torch.zeros(1, 2, 11, 4), torch.zeros(1, 2, 5, 4)
    counted = count(lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask))
    assert counted.macs == 2 * 2 * 11 * 5 * 4


def test_multihead_attention_counts_in_evaluation_mode():
    module = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(1, 10, 8)
    counted = count_macs(module, lambda: module(x, x, x, need_weights=False))
    assert counted.macs == 4 * 10 * 8 * 8 + 2 * 2 * 10 * 10 * 4


def test_modules_that_are_not_called_get_the_sum_of_their_parts():
    heads = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 2)])
    module = nn.ModuleDict({"heads": heads, "idle": nn.Linear(9, 9)})
    x = torch.zeros(3, 4)
    counted = count_macs(module, lambda: [head(x) for head in module["heads"]])
    assert counted.macs_by_module == {"": 72, "heads": 72, "heads.0": 48, "heads.1": 24}
    assert counted.macs_by_operator == {"aten.addmm": 72}
    assert counted.parameters == 20 + 10 + 90
    parts = {"": 120, "heads": 30, "heads.0": 20, "heads.1": 10, "idle": 90}
    assert counted.parameters_by_module == parts
    assert list(counted.parameters_by_module) == list(parts)


def test_leaves_the_module_as_it_was():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
    before = module[0].running_mean.clone()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(RuntimeError, match="channels"):
        count_macs(module, lambda: module[1](torch.zeros(1, 2, 4, 4)))
    count_macs(module, lambda: module(torch.ones(2, 3, 4, 4)))
    assert module.training
    assert module[0].training
    assert torch.equal(module[0].running_mean, before)
    assert torch.backends.mha.get_fastpath_enabled() == fast_path


def test_foreign_operators_and_sampling_are_named():
    x = torch.zeros(3)
    counted = count(lambda: [mystery(x), mystery(x), x + 1])
    assert counted.uncounted == {"flatten_det_tests.mystery": 2}
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
    assert (counted.macs, counted.uncounted) == (0, {})
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


def test_products_with_vectors_and_einsum():
    matrix, vector = torch.zeros(5, 7), torch.zeros(7)
    assert count(lambda: matrix @ vector).macs == 35
    assert count(lambda: vector @ vector).macs == 7
    x, y = torch.zeros(2, 5, 3), torch.zeros(2, 3, 4, 6)
    counted = count(lambda: torch.einsum("bqc,bchw->bqhw", x, y))
    assert counted.macs == 2 * 5 * 3 * 24
    assert not counted.uncounted
