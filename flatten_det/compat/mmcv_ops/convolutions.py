"""Deformable convolution, plain (Dai et al., 2017) and modulated (Zhu et al., 2019); MaskedConv2d.

Both deformable ones are torchvision's operator, whose layout of the offsets is mmcv's: (B, DG * KH *
KW * 2, OH, OW) with y before x. The plain one works on ``im2col_step`` images at a time, the modulated
one on single images, as the extension does: the unfolded columns of a batch would not fit into memory.
``MaskedConv2d`` convolves only at chosen places of one image, in two halves.
"""

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

from .precision import at_least_float32


def masked_im2col_forward(im, mask_h_idx, mask_w_idx, col, kernel_h, kernel_w, pad_h, pad_w):
    """Write the window around each of M places of ``im`` (1, C, H, W) to ``col``
    (C * kernel_h * kernel_w, M); stride 1, zeros off the image."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device).view(-1, 1, 1)
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device).view(-1, 1)
    col.copy_(padded[:, rows, columns].flatten(0, 2))


def masked_col2im_forward(col, mask_h_idx, mask_w_idx, im, height, width, channels):
    """Write ``col`` (channels, M) to the M places of ``im`` (1, channels, height, width)."""
    im[0, :, mask_h_idx, mask_w_idx] = col


def deform_conv_forward(input, weight, offset, output, columns, ones, im2col_step, **geometry):
    """Write the convolution of ``input`` (B, C, H, W) to ``output`` (B, O, OH, OW).

    ``weight`` is (O, C / group, kH, kW); ``columns`` and ``ones`` are the extension's work space.
    """
    conv = _plain(**geometry)
    for part in _parts(input, im2col_step):
        output[part] = _forward(input[part], weight, None, offset[part], None, conv)


def deform_conv_backward_input(
    input, offset, gradOutput, gradInput, gradOffset, weight, columns, im2col_step, **geometry
):
    """Add the gradients of the input and the offsets to ``gradInput`` and ``gradOffset``."""
    conv = _plain(**geometry)
    for part in _parts(input, im2col_step):
        grad_input, _, grad_offset, _, _ = _backward(
            gradOutput[part], input[part], weight, None, offset[part], None, conv
        )
        gradInput[part] += grad_input
        gradOffset[part] += grad_offset


def deform_conv_backward_parameters(
    input, offset, gradOutput, gradWeight, columns, ones, scale, im2col_step, **geometry
):
    """Add ``scale`` times the gradient of the weight to ``gradWeight`` (O, C / group, kH, kW)."""
    conv = _plain(**geometry)
    total = torch.zeros_like(at_least_float32(gradWeight))
    for part in _parts(input, im2col_step):
        # The weight's values do not enter its own gradient: any tensor of its shape will do.
        total += _backward(
            gradOutput[part], input[part], gradWeight, None, offset[part], None, conv
        )[1]
    gradWeight += scale * total


def modulated_deform_conv_forward(
    input, weight, bias, ones, offset, mask, output, columns, with_bias, **geometry
):
    """Write the convolution of ``input`` (B, C, H, W) to ``output`` (B, O, OH, OW).

    ``mask`` is (B, DG * KH * KW, OH, OW), ``bias`` (O,), read only ``with_bias``. Masks
    and offsets of a larger map are read as :func:`_leading` does.
    """
    conv = _modulated(**geometry)
    bias = bias if with_bias else None
    taps, size = conv[-1] * weight[0, 0].numel(), output.shape[2:]
    for part in _parts(input, 1):
        offsets = _leading("offset", offset[part], 2 * taps, size)
        masks = _leading("mask", mask[part], taps, size)
        output[part] = _forward(input[part], weight, bias, offsets, masks, conv)


def modulated_deform_conv_backward(
    input, weight, bias, ones, offset, mask, columns, *grads, with_bias, **geometry
):
    """Add each gradient to the tensor that the caller holds for it; the last of ``grads`` is the output's."""
    grad_input, grad_weight, grad_bias, grad_offset, grad_mask, grad_output = grads
    conv = _modulated(**geometry)
    taps, size = conv[-1] * weight[0, 0].numel(), grad_output.shape[2:]
    total_weight = torch.zeros_like(at_least_float32(weight))
    for part in _parts(input, 1):
        offsets = _leading("offset", offset[part], 2 * taps, size)
        masks = _leading("mask", mask[part], taps, size)
        d_input, d_weight, d_offset, d_mask, _ = _backward(
            grad_output[part], input[part], weight, None, offsets, masks, conv
        )
        grad_input[part] += d_input
        _add_to_leading(grad_offset[part], d_offset)
        _add_to_leading(grad_mask[part], d_mask)
        total_weight += d_weight
    grad_weight += total_weight
    if with_bias:
        grad_bias += at_least_float32(grad_output).sum((0, 2, 3))


def _plain(kH, kW, dH, dW, padH, padW, dilationH, dilationW, group, deformable_group):
    """The numbers that mmcv passes by name, as torchvision takes them."""
    return dH, dW, padH, padW, dilationH, dilationW, group, deformable_group


def _modulated(
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,
    deformable_group,
):  # fmt: skip
    """As :func:`_plain`."""
    return stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group


def _parts(input, step):
    return [slice(start, start + step) for start in range(0, input.size(0), step)]


def _leading(name, maps, channels, size):
    """The first ``channels * OH * OW`` numbers of each image's ``maps``, as (B, channels, OH, OW).

    The extension does not look at the maps' own shape, and DyHead relies on it: it convolves each
    level with the offsets and masks of its larger neighbour.
    """
    flat = maps.flatten(1)
    needed = channels * size.numel()
    if flat.size(1) < needed:
        raise ValueError(
            f"modulated_deform_conv got {name}s of shape {tuple(maps.shape[1:])} per image;"
            f" its output needs {(channels, *size)}"
        )
    return flat[:, :needed].unflatten(1, (channels, *size))


def _add_to_leading(maps, grad):
    """Add to each image's ``maps`` the gradient of what :func:`_leading` took from them."""
    flat = grad.flatten(1)
    maps += F.pad(flat, (0, maps[0].numel() - flat.size(1))).view(maps.shape)


def _forward(input, weight, bias, offset, mask, conv):
    return torch.ops.torchvision.deform_conv2d(
        *_operands(input, weight, offset, mask, bias), *conv, mask is not None
    )


def _backward(grad, input, weight, bias, offset, mask, conv):
    """Gradients of input, weight, offset, mask and bias."""
    operands = _operands(input, weight, offset, mask, bias)
    d_input, d_weight, d_offset, d_mask, d_bias = torch.ops.torchvision._deform_conv2d_backward(
        at_least_float32(grad), *operands, *conv, mask is not None
    )
    off_map = _off_map(operands[2], input.shape[2:], weight.shape[2:], conv)
    d_offset.view(off_map.shape).masked_fill_(off_map, 0)
    return d_input, d_weight, d_offset, d_mask, d_bias


def _off_map(offset, size, kernel, conv):
    """Which samples lie on -1 or H (or W) or beyond, (B, DG, KH, KW, 2, OH, OW).

    They read 0. torchvision still gives an offset the slope that begins at -1, mmcv none.
    """
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, _, groups = conv
    offset = offset.unflatten(1, (groups, *kernel, 2))
    row, column, tap_row, tap_column = (
        torch.arange(n, device=offset.device) for n in (*offset.shape[5:], *kernel)
    )
    first_y, first_x = (row * stride_h - pad_h).view(-1, 1), column * stride_w - pad_w
    tap_y = (tap_row * dilation_h).view(-1, 1, 1, 1)
    tap_x = (tap_column * dilation_w).view(-1, 1, 1)
    y, x = offset[:, :, :, :, 0] + (first_y + tap_y), offset[:, :, :, :, 1] + (first_x + tap_x)
    off_map = (y <= -1) | (y >= size[0]) | (x <= -1) | (x >= size[1])
    return off_map.unsqueeze(4).expand(offset.shape)


def _operands(input, weight, offset, mask, bias):
    """What torchvision takes, in its order; it wants tensors for a missing mask and bias too."""
    if mask is None:
        mask = input.new_zeros(input.size(0), 1)
    if bias is None:
        bias = input.new_zeros(weight.size(0))
    return [at_least_float32(x) for x in (input, weight, offset, mask, bias)]
