"""The two halves of ``MaskedConv2d``, which convolves only at chosen places of one image."""

import torch
import torch.nn.functional as F


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
