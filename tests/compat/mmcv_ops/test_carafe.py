import pytest
import torch
import torch.nn.functional as F
from mmcv import _ext
from mmcv.ops import CARAFE, CARAFENaive
from mmcv.ops.carafe import CARAFEPack
from op_checks import check_rounded_once, check_same_with_gradients

CASES = [(1, 1, 2), (3, 1, 1), (3, 2, 2), (5, 3, 2), (3, 1, 3)]  # kernel, groups, scale


def operands(kernel, groups, scale):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64)
    masks = torch.randn(
        2, groups * kernel**2, 4 * scale, 5 * scale, generator=generator, dtype=torch.float64
    )
    return features.requires_grad_(), masks.requires_grad_()


def reference(features, masks, kernel, groups, scale):
    """Wang et al. (2019), equation 2: each output cell weighs the unfolded window of its source."""
    batch, channels, height, width = features.shape
    windows = F.unfold(features, kernel, padding=kernel // 2)
    windows = windows.view(batch, channels * kernel**2, height, width)
    windows = F.interpolate(windows, scale_factor=scale, mode="nearest")
    windows = windows.view(batch, groups, channels // groups, kernel**2, *masks.shape[2:])
    masks = masks.view(batch, groups, 1, kernel**2, *masks.shape[2:])
    return (windows * masks).sum(3).flatten(1, 2)


@pytest.mark.parametrize(("kernel", "groups", "scale"), CASES)
def test_values_and_gradients(kernel, groups, scale):
    inputs = operands(kernel, groups, scale)
    expected = reference(*inputs, kernel, groups, scale)
    torch.testing.assert_close(CARAFENaive(kernel, groups, scale)(*inputs), expected)
    actual = CARAFE(kernel, groups, scale)(*inputs)
    upstream, expected_grads = check_same_with_gradients(actual, expected, inputs)
    # mmcv lets CARAFENaive's backward run on CUDA tensors only, so it is called by hand.
    grads = tuple(torch.ones_like(x) for x in inputs)
    with torch.no_grad():
        _ext.carafe_naive_backward(
            upstream, *inputs, *grads, kernel_size=kernel, group_size=groups, scale_factor=scale
        )
    torch.testing.assert_close(grads, tuple(grad + 1 for grad in expected_grads))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    check_rounded_once(CARAFE(5, 3, 2), operands(5, 3, 2), dtype)


def test_the_packed_layer_upsamples():
    layer = CARAFEPack(8, scale_factor=2)
    output = layer(torch.randn(1, 8, 5, 6))
    output.sum().backward()
    assert output.shape == (1, 8, 10, 12)
    assert all(p.grad is not None for p in layer.parameters())
