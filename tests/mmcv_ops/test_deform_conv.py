import pytest
import torch
from mmcv.ops import (
    DeformConv2d,
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)

# groups, deform_groups, stride, padding, dilation
CONVOLUTIONS = [(1, 1, 1, 1, 1), (2, 1, 2, 0, 1), (1, 2, 1, (2, 1), (2, 1)), (2, 2, (1, 2), 1, 1)]


def bilinear(plane, y, x):
    """Value (C,) of (C, H, W) at a place; cells off the map are 0."""
    height, width = plane.shape[1:]
    y0, x0 = int(y.floor()), int(x.floor())
    value = 0
    for row, weight_y in ((y0, y0 + 1 - y), (y0 + 1, y - y0)):
        for column, weight_x in ((x0, x0 + 1 - x), (x0 + 1, x - x0)):
            if 0 <= row < height and 0 <= column < width:
                value = value + plane[:, row, column] * weight_y * weight_x
    return value


def reference(input, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """Zhu et al. (2019), equation 1, cell by cell: offsets come as y, x per tap and group."""
    stride, padding, dilation = (
        (v, v) if isinstance(v, int) else v for v in (stride, padding, dilation)
    )
    out_channels, _, kh, kw = weight.shape
    channels = input.size(1) // deform_groups
    output = []
    for b in range(input.size(0)):
        for row in range(offset.size(2)):
            for column in range(offset.size(3)):
                columns = []
                for group in range(deform_groups):
                    plane = input[b, group * channels : (group + 1) * channels]
                    for tap in range(kh * kw):
                        k = group * kh * kw + tap
                        dy, dx = offset[b, 2 * k : 2 * k + 2, row, column]
                        y = row * stride[0] - padding[0] + tap // kw * dilation[0] + dy
                        x = column * stride[1] - padding[1] + tap % kw * dilation[1] + dx
                        value = bilinear(plane, y, x) + plane.new_zeros(channels)
                        columns.append(value if mask is None else value * mask[b, k, row, column])
                cell = torch.stack(columns).view(deform_groups, kh * kw, channels)
                cell = cell.transpose(1, 2).reshape(groups, -1)  # [G, C / G * KH * KW]
                kernel = weight.view(groups, out_channels // groups, -1)
                result = torch.einsum("gok,gk->go", kernel, cell).flatten()
                output.append(result if bias is None else result + bias)
    output = torch.stack(output).view(input.size(0), offset.size(2), offset.size(3), -1)
    return output.permute(0, 3, 1, 2)


def operands(stride, padding, dilation, groups, deform_groups, batch=2):
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    conv = torch.nn.Conv2d(4, 6, (3, 2), stride, padding, dilation, groups)
    height, width = conv(torch.zeros(1, 4, 6, 5)).shape[2:]
    taps = deform_groups * 6
    tensors = dict(
        input=randn(batch, 4, 6, 5),
        offset=randn(batch, 2 * taps, height, width) * 1.5,
        mask=randn(batch, taps, height, width).sigmoid(),
        weight=randn(6, 4 // groups, 3, 2),
        bias=randn(6),
    )
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def assert_same_with_gradients(actual, expected, inputs):
    torch.testing.assert_close(actual, expected)
    upstream = torch.rand(expected.shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, upstream),
        torch.autograd.grad(expected, inputs, upstream),
    )


@pytest.mark.parametrize("im2col_step", [1, 2])
@pytest.mark.parametrize(("groups", "deform_groups", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_deform_conv(groups, deform_groups, stride, padding, dilation, im2col_step):
    x = operands(stride, padding, dilation, groups, deform_groups)
    conv = (stride, padding, dilation, groups, deform_groups)
    actual = deform_conv2d(x["input"], x["offset"], x["weight"], *conv, False, im2col_step)
    expected = reference(x["input"], x["offset"], None, x["weight"], None, *conv)
    assert_same_with_gradients(actual, expected, [x["input"], x["offset"], x["weight"]])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("groups", "deform_groups", "stride", "padding", "dilation"), CONVOLUTIONS)
def test_modulated_deform_conv(groups, deform_groups, stride, padding, dilation, with_bias):
    x = operands(stride, padding, dilation, groups, deform_groups)
    if not with_bias:
        x["bias"] = None
    conv = (stride, padding, dilation, groups, deform_groups)
    actual = modulated_deform_conv2d(*x.values(), *conv)
    expected = reference(*x.values(), *conv)
    assert_same_with_gradients(actual, expected, [t for t in x.values() if t is not None])


@pytest.mark.parametrize("packed", [DeformConv2dPack, ModulatedDeformConv2dPack])
def test_layers_start_as_plain_convolutions(packed):
    """The packed layers predict their offsets, from 0; the modulated one's mask starts at 1/2."""
    input = torch.randn(2, 4, 8, 7)
    layer = packed(4, 6, 3, padding=1, groups=2, deform_groups=2, bias=False)
    expected = torch.nn.functional.conv2d(input, layer.weight, padding=1, groups=2)
    factor = 0.5 if packed is ModulatedDeformConv2dPack else 1
    torch.testing.assert_close(layer(input), factor * expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    x = operands(1, 1, 1, 1, 1)
    half = {name: tensor.detach().to(dtype).requires_grad_() for name, tensor in x.items()}
    single = {name: tensor.detach().float().requires_grad_() for name, tensor in half.items()}
    outputs = []
    for tensors in (half, single):
        plain = DeformConv2d(4, 6, (3, 2), padding=1)
        modulated = ModulatedDeformConv2d(4, 6, (3, 2), padding=1)
        plain.weight, modulated.weight, modulated.bias = (
            torch.nn.Parameter(tensors[name].detach()) for name in ("weight", "weight", "bias")
        )
        output = plain(tensors["input"], tensors["offset"])
        output = torch.stack(
            [output, modulated(tensors["input"], tensors["offset"], tensors["mask"])]
        )
        output.sum().backward()
        outputs.append((output, modulated.weight.grad, plain.weight.grad))
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(*outputs, strict=True))
