import pytest
import torch
from mmcv.ops import (
    DeformConv2dPack,
    MaskedConv2d,
    ModulatedDeformConv2dPack,
    deform_conv2d,
    modulated_deform_conv2d,
)
from op_checks import check_rounded_once, check_same_with_gradients

# stride, padding, dilation, groups, deform_groups
CONVOLUTIONS = [(1, 1, 1, 1, 1), (2, 0, 1, 2, 1), (1, (2, 1), (2, 1), 1, 2), ((1, 2), 1, 1, 2, 2)]


def bilinear(plane, y, x):
    """Value (C,) of (C, H, W) at a place; cells off the map are 0, and nothing reaches its edge."""
    height, width = plane.shape[1:]
    if not (-1 < y < height and -1 < x < width):
        return 0
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


def operands(stride, padding, dilation, groups, deform_groups, batch=2, larger_by=0):
    """``larger_by``: how many rows and columns offsets and masks have beyond the output's."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    conv = torch.nn.Conv2d(4, 6, (3, 2), stride, padding, dilation, groups)
    height, width = conv(torch.zeros(1, 4, 6, 5)).shape[2:]
    taps = deform_groups * 6
    tensors = dict(
        input=randn(batch, 4, 6, 5),
        offset=randn(batch, 2 * taps, height + larger_by, width + larger_by) * 1.5,
        mask=randn(batch, taps, height + larger_by, width + larger_by).sigmoid(),
        weight=randn(6, 4 // groups, 3, 2),
        bias=randn(6),
    )
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def check_plain(x, conv, im2col_step=32):
    actual = deform_conv2d(x["input"], x["offset"], x["weight"], *conv, False, im2col_step)
    expected = reference(x["input"], x["offset"], None, x["weight"], None, *conv)
    check_same_with_gradients(actual, expected, [x["input"], x["offset"], x["weight"]])


def check_modulated(x, conv):
    actual = modulated_deform_conv2d(*x.values(), *conv)
    expected = reference(*x.values(), *conv)
    check_same_with_gradients(actual, expected, [t for t in x.values() if t is not None])


@pytest.mark.parametrize("im2col_step", [1, 2])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_deform_conv(conv, im2col_step):
    x = operands(*conv)
    check_plain(x, conv, im2col_step)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_modulated_deform_conv(conv, with_bias):
    x = operands(*conv)
    if not with_bias:
        x["bias"] = None
    check_modulated(x, conv)


def test_samples_on_cells_and_on_the_edge_of_the_map():
    """On a cell's centre the slope after it counts; at exactly -1, H or W there is none."""
    conv = (1, 1, 1, 1, 2)
    x = operands(*conv)
    with torch.no_grad():
        x["offset"].mul_(2).round_()
    check_plain(x, conv)
    check_modulated(x, conv)


@pytest.mark.parametrize(
    ("y", "x"), [(-1.0, 1.0), (-1.0, 1.5), (1.0, -1.0), (3.0, 1.0), (1.5, 4.0), (-1.0, -1.0)]
)
def test_a_sample_at_exactly_the_edge_has_no_gradients(y, x):
    input = torch.rand(1, 1, 3, 4, requires_grad=True)
    offset = torch.tensor([y, x]).view(1, 2, 1, 1).repeat(1, 1, 3, 4)
    offset -= torch.stack(torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij"))
    offset, mask = offset.requires_grad_(), torch.ones(1, 1, 3, 4, requires_grad=True)
    output = modulated_deform_conv2d(input, offset, mask, torch.ones(1, 1, 1, 1))
    grads = torch.autograd.grad(output.sum(), [input, offset, mask])
    assert not any(tensor.any() for tensor in (output, *grads))


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_offsets_and_masks_of_a_larger_map_are_read_flat(conv):
    """As mmcv's kernels do, which DyHead needs; what they do not reach gets no gradient."""
    x = operands(*conv, larger_by=2)
    actual = modulated_deform_conv2d(*x.values(), *conv)
    taps, size = conv[-1] * 6, actual.shape[2:]
    leading = {
        name: x[name].flatten(1)[:, : n * size.numel()].reshape(2, n, *size)
        for name, n in (("offset", 2 * taps), ("mask", taps))
    }
    expected = reference(*(x | leading).values(), *conv)
    check_same_with_gradients(actual, expected, [*x.values()])


@pytest.mark.parametrize("name", ["offset", "mask"])
def test_too_few_offsets_or_masks_are_named(name):
    x = operands(1, 1, 1, 1, 1)
    x[name] = x[name][:, :, 1:].detach()
    with pytest.raises(ValueError, match=rf"{name}s of shape .*, 5, 6\) .* needs .*, 6, 6\)"):
        modulated_deform_conv2d(*x.values(), 1, 1)


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

    def plain(input, offset, weight):
        return deform_conv2d(input, offset, weight, 1, 1)

    def modulated(*inputs):
        return modulated_deform_conv2d(*inputs, 1, 1)

    check_rounded_once(plain, [x["input"], x["offset"], x["weight"]], dtype)
    check_rounded_once(modulated, [*x.values()], dtype)


def test_only_the_masked_places_are_convolved():
    layer = MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    input = torch.randn(1, 3, 7, 9)
    mask = torch.rand(1, 7, 9) > 0.6
    plain = torch.nn.functional.conv2d(input, layer.weight, layer.bias, padding=(1, 2))
    with torch.no_grad():
        output = layer(input, mask)
    assert mask.any()
    torch.testing.assert_close(output, plain * mask)


def test_an_empty_mask_gives_zeros():
    layer = MaskedConv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        assert not layer(torch.randn(1, 3, 7, 9), torch.zeros(1, 7, 9)).any()
