"""Deformable convolution, plain (Dai et al., 2017) and modulated (Zhu et al., 2019).

Both are torchvision's operator, whose layout of the offsets is mmcv's: (B, DG * KH * KW * 2, OH,
OW) with y before x. The plain one works on ``im2col_step`` images at a time, the modulated one on
single images, as the extension does: the unfolded columns of a batch would not fit into memory.
"""

import torch
import torchvision  # noqa: F401  (registers torch.ops.torchvision)

from .precision import at_least_float32


def deform_conv_forward(
    input,
    weight,
    offset,
    output,
    columns,
    ones,
    kW,
    kH,
    dW,
    dH,
    padW,
    padH,
    dilationW,
    dilationH,
    group,
    deformable_group,
    im2col_step,
):
    """Write the convolution of ``input`` (B, C, H, W) to ``output`` (B, O, OH, OW).

    ``weight`` is (O, C / group, kH, kW); ``columns`` and ``ones`` are the extension's work space.
    """
    conv = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    for part in _parts(input, im2col_step):
        output[part] = _forward(input[part], weight, None, offset[part], None, conv)


def deform_conv_backward_input(
    input,
    offset,
    gradOutput,
    gradInput,
    gradOffset,
    weight,
    columns,
    kW,
    kH,
    dW,
    dH,
    padW,
    padH,
    dilationW,
    dilationH,
    group,
    deformable_group,
    im2col_step,
):
    """Add the gradients of the input and the offsets to ``gradInput`` and ``gradOffset``."""
    conv = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    for part in _parts(input, im2col_step):
        grad_input, _, grad_offset, _, _ = _backward(
            gradOutput[part], input[part], weight, None, offset[part], None, conv
        )
        gradInput[part] += grad_input
        gradOffset[part] += grad_offset


def deform_conv_backward_parameters(
    input,
    offset,
    gradOutput,
    gradWeight,
    columns,
    ones,
    kW,
    kH,
    dW,
    dH,
    padW,
    padH,
    dilationW,
    dilationH,
    group,
    deformable_group,
    scale,
    im2col_step,
):
    """Add ``scale`` times the gradient of the weight to ``gradWeight`` (O, C / group, kH, kW)."""
    conv = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    total = torch.zeros_like(at_least_float32(gradWeight))
    for part in _parts(input, im2col_step):
        # The weight's values do not enter its own gradient: any tensor of its shape will do.
        total += _backward(
            gradOutput[part], input[part], gradWeight, None, offset[part], None, conv
        )[1]
    gradWeight += scale * total


def modulated_deform_conv_forward(
    input,
    weight,
    bias,
    ones,
    offset,
    mask,
    output,
    columns,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    group,
    deformable_group,
    with_bias,
):
    """Write the convolution of ``input`` (B, C, H, W) to ``output`` (B, O, OH, OW).

    ``mask`` is (B, DG * kernel_h * kernel_w, OH, OW), ``bias`` (O,), read only ``with_bias``.
    """
    conv = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    bias = bias if with_bias else None
    for part in _parts(input, 1):
        output[part] = _forward(input[part], weight, bias, offset[part], mask[part], conv)


def modulated_deform_conv_backward(
    input,
    weight,
    bias,
    ones,
    offset,
    mask,
    columns,
    grad_input,
    grad_weight,
    grad_bias,
    grad_offset,
    grad_mask,
    grad_output,
    kernel_h,
    kernel_w,
    stride_h,
    stride_w,
    pad_h,
    pad_w,
    dilation_h,
    dilation_w,
    group,
    deformable_group,
    with_bias,
):
    """Add each gradient to the tensor that the caller holds for it."""
    conv = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    total_weight = torch.zeros_like(at_least_float32(weight))
    for part in _parts(input, 1):
        d_input, d_weight, d_offset, d_mask, _ = _backward(
            grad_output[part], input[part], weight, None, offset[part], mask[part], conv
        )
        grad_input[part] += d_input
        grad_offset[part] += d_offset
        grad_mask[part] += d_mask
        total_weight += d_weight
    grad_weight += total_weight
    if with_bias:
        grad_bias += at_least_float32(grad_output).sum((0, 2, 3))


def _parts(input, step):
    return [slice(start, start + step) for start in range(0, input.size(0), step)]


def _forward(input, weight, bias, offset, mask, conv):
    return torch.ops.torchvision.deform_conv2d(
        *_operands(input, weight, offset, mask, bias), *conv, mask is not None
    )


def _backward(grad, input, weight, bias, offset, mask, conv):
    """Gradients of input, weight, offset, mask and bias."""
    return torch.ops.torchvision._deform_conv2d_backward(
        at_least_float32(grad),
        *_operands(input, weight, offset, mask, bias),
        *conv,
        mask is not None,
    )


def _operands(input, weight, offset, mask, bias):
    """What torchvision takes, in its order; it wants tensors for a missing mask and bias too."""
    if mask is None:
        mask = input.new_zeros(input.size(0), 1)
    if bias is None:
        bias = input.new_zeros(weight.size(0))
    return [at_least_float32(x) for x in (input, weight, offset, mask, bias)]
