"""The counter against multiply-adds worked out by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flatten_det.lab.complexity import count_macs


def test_linear_and_depthwise_convolution():
    module = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(2), nn.Linear(30, 7))
    counted = count_macs(module, lambda: module(torch.zeros(1, 8, 5, 6)))
    assert counted.parameters == 8 * 9 + 8 + 30 * 7 + 7
    assert counted.macs_by_module == {"": 8 * 30 * 9 + 8 * 30 * 7, "0": 8 * 30 * 9, "2": 8 * 30 * 7}
    assert counted.macs == 8 * 30 * 9 + 8 * 30 * 7


@pytest.mark.parametrize("masked", [False, True])
def test_fused_attention_counts_as_its_two_products(masked):
    q, k = torch.zeros(1, 2, 11, 4), torch.zeros(1, 2, 5, 4)
    mask = torch.zeros(11, 5) if masked else None
    counted = count_macs(
        nn.Identity(), lambda: F.scaled_dot_product_attention(q, k, k, attn_mask=mask)
    )
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
