"""The output of a layer from its matrices, which shows that they are the layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .convolution import value_matrix
from .matrices import Weights, own_variant
from .windows import Windows


def output_from_matrices(parts: Sequence[Windows], num_tokens: int) -> Tensor:
    """``(M_attn + M_DWC) V + bias`` of all windows and heads: what the layer gives to its projection.

    Args:
        parts: all windows of a layer.
        num_tokens: N of its map.

    Returns:
        ``(N, C)`` in float64.
    """
    d = parts[0].head_dim
    heads = sum({part.heads: len(part.heads) for part in parts}.values())
    out = torch.zeros(num_tokens, heads * d, dtype=torch.float64)
    for part in parts:
        weights = Weights(part, own_variant(part))
        for position, head in enumerate(part.heads):
            columns = slice(head * d, (head + 1) * d)
            for window in range(len(part.tokens)):
                result = weights.matrix(window, position) @ part.of_head(
                    part.values, window, position
                )
                inside = part.tokens[window] >= 0
                out[part.tokens[window][inside], columns] = result[inside]
            if part.convolutions:
                _add_convolutions(out, part, position, head)
    return out


def _add_convolutions(out: Tensor, part: Windows, position: int, head: int) -> None:
    d = part.head_dim
    for channel in range(d):
        matrix = value_matrix(part, position, channel)
        bias = sum(c.bias[position, channel] for c in part.convolutions)
        # All windows at once: the kernel does not change from window to window.
        values = part.values[:, :, position * d + channel].T  # [m, G]
        result = (matrix @ values + bias).T
        inside = part.tokens >= 0
        out[part.tokens[inside], head * d + channel] += result[inside]
