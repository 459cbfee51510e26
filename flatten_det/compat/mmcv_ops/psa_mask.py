"""PSAMask, the attention maps of PSANet (Zhao et al., 2018).

Every cell predicts a mask over its surroundings, HM x WM, centred on itself. The op lays these out
over the absolute cells: (N, HM * WM, H, W) becomes (N, H * W, H, W).
"""

import torch

COLLECT = 0


def psamask_forward(
    input,
    output,
    psa_type,
    num_,
    h_feature,
    w_feature,
    h_mask,
    w_mask,
    half_h_mask,
    half_w_mask,
):
    """Fill ``output`` (N, H * W, H, W): channel = the cell looked at and place = the looking cell
    for ``psa_type`` 0 (collect), the other way round for 1 (distribute); 0 beyond the mask."""
    index, beyond = _mask_index(
        input.device, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
    )
    masks = input.flatten(2)
    collected = masks.gather(1, index.expand(num_, -1, -1)).masked_fill_(beyond, 0)
    output.copy_(_transposed(collected, psa_type).view_as(output))


def psamask_backward(
    grad_output,
    grad_input,
    psa_type,
    num_,
    h_feature,
    w_feature,
    h_mask,
    w_mask,
    half_h_mask,
    half_w_mask,
):
    """Add the gradient of the masks to ``grad_input`` (N, HM * WM, H, W)."""
    index, beyond = _mask_index(
        grad_output.device, h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask
    )
    grad = _transposed(grad_output.flatten(2), psa_type).masked_fill(beyond, 0)
    total = torch.zeros_like(grad_input).flatten(2)
    total.scatter_add_(1, index.expand(num_, -1, -1), grad)
    grad_input += total.view_as(grad_input)


def _transposed(collected, psa_type):
    return collected if psa_type == COLLECT else collected.transpose(1, 2)


def _mask_index(device, height, width, h_mask, w_mask, half_h_mask, half_w_mask):
    """For each (cell looked at, looking cell), (H * W, H * W): the mask channel that says how much,
    and whether it lies beyond the mask."""
    cell = torch.arange(height * width, device=device)
    y, x = cell // width, cell % width
    row = y.unsqueeze(1) - y + half_h_mask
    column = x.unsqueeze(1) - x + half_w_mask
    beyond = (row < 0) | (row >= h_mask) | (column < 0) | (column >= w_mask)
    return (row * w_mask + column).masked_fill_(beyond, 0), beyond
