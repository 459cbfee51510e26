"""Focused linear attention in few operations of torch, for devices and calls that have no faster one.

The equation is that of :mod:`.reference`, in fewer passes over memory than the code it was published in takes
under autocast. A GPU's time for such operations is that of their bytes.

- The feature map, the norms and all sums are in float32. So are the products where gradients are recorded
  (those of the scale are sums of what nearly cancels), and for float16, which has no range for features
  that are not normalised. Else, and in the convolution, bfloat16 stays bfloat16.
- A positive factor of a row of q cancels but for the eps of the normaliser (see :mod:`.tiled`), so q is never
  brought back to its norm.
- Where gradients are recorded, attention averages ``v - centre``, the centre being the mean of the values,
  whose own share is added. The gradients of q and k would else be differences of large rounded numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .eager import without_autocast
from .maps import is_padding
from .reference import Inputs, depthwise_values

# A weight of all keys below this is nothing beside the eps.
_LEAST = 1e-20


def focused_linear_attention(inputs: Inputs) -> Tensor:
    """The result of :func:`flatten_det.attention.reference.focused_linear_attention`, zero in the padding."""
    q, k, v, positions, scale, dwc_weight, dwc_bias = inputs.tensors
    num_heads, hw_shape, eps, sizes = inputs.num_heads, inputs.hw_shape, inputs.eps, inputs.sizes
    full = torch.promote_types(v.dtype, torch.float32)
    differentiates = torch.is_grad_enabled()
    dtype = v.dtype if v.dtype == torch.bfloat16 and not differentiates else full
    M, padding = k.shape[1], None
    if sizes is not None:
        padding = is_padding(sizes, hw_shape).flatten(1).unsqueeze(-1)  # [B, N, 1]
        M = sizes.prod(dim=1).view(-1, 1, 1)
        # Zeros like what every image alone is surrounded by.
        v = v.masked_fill(padding, 0)
    with without_autocast(q.device):
        inverse_scale = None if scale is None else 1 / F.softplus(scale.to(full))
        settings = (inverse_scale, eps, inputs.floor, inputs.focusing_factor)
        keys = k if positions is None else k + positions.to(full)
        (queries, q_norm, q_powers_norm), (keys, k_norm, k_powers_norm) = (
            _powers(x, *settings) for x in (q, keys)
        )
        queries = _heads(queries, num_heads, dtype)  # [B, h, N, d]
        lengths = k_norm / k_powers_norm
        if padding is not None:
            lengths = lengths.masked_fill(padding, 0)
        keys = _heads(keys, num_heads, dtype) * lengths.unsqueeze(1).to(dtype)
        centre = v.detach().sum(dim=1, keepdim=True, dtype=full) / M if differentiates else None
        values = _heads(v - centre if differentiates else v, num_heads, dtype)  # [B, h, M, d]

        sums = keys.sum(dim=2, dtype=full).unsqueeze(-1).to(dtype)  # [B, h, d, 1]
        weight = (queries @ sums).to(full)  # [B, h, N, 1]
        eps_term = (M * eps * q_powers_norm / q_norm).unsqueeze(1)  # [B, 1, N, 1]
        out = queries @ (keys.transpose(-2, -1) @ values)  # [B, h, N, d]
        if differentiates:
            weight = weight.clamp_min(_LEAST)
            share = 1 / (1 + eps_term / weight)
            out = torch.addcmul(out * (share / weight), _heads(centre, num_heads, full), share)
        else:
            out = out * (weight + eps_term).reciprocal().to(dtype)
        out = out.transpose(1, 2).flatten(2)
        if dwc_weight is not None:
            # The gradient of the weight is a sum over all tokens: too large for float16.
            dtype = full if differentiates and v.dtype == torch.float16 else v.dtype
            parameters = (None if x is None else x.to(dtype) for x in (dwc_weight, dwc_bias))
            out = out + depthwise_values(v.to(dtype), *parameters, num_heads, hw_shape)
        out = out.to(v.dtype)
        return out if padding is None else out.masked_fill(padding, 0)


def _powers(
    x: Tensor,
    inverse_scale: Tensor | None,
    eps: float,
    floor: Tensor | None,
    focusing_factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Powers of the rows ``a`` that the feature map focuses, up to a positive factor c per row.

    Returns:
        ``c a^p (B, N, C)``, and in ``(B, N, 1)`` the norms of ``a`` and of ``c a^p``; at least float32.
    """
    full = torch.promote_types(x.dtype, torch.float32)
    if floor is not None:
        a = torch.maximum(x, floor.to(full))
    elif inverse_scale is not None:
        a = torch.addcmul(eps * inverse_scale, F.relu(x), inverse_scale)
    else:
        a = F.relu(x).to(full) + eps
    norm = torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    # No power of rows of this size leaves the range. Nothing depends on the size, hence detach.
    size = norm if focusing_factor == 3 else a.amax(dim=-1, keepdim=True)
    powers = (a / size.detach()) ** focusing_factor
    return powers, norm, torch.linalg.vector_norm(powers, dim=-1, keepdim=True)


def _heads(x: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """``(B, N, C)`` -> ``(B, h, N, d)``, contiguous, in one pass with the conversion."""
    heads = x.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return heads.to(dtype, memory_format=torch.contiguous_format)
