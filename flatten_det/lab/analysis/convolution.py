"""A depthwise convolution of the values as a sparse banded matrix."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import Windows


def convolution_matrix(kernel: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """The matrix M with ``M @ v`` = the convolution of one channel ``v (N,)``, without bias.

    Args:
        kernel: ``(K, K)``, K odd. It is applied as torch does, unflipped, with zero padding of K // 2.
        hw_shape: ``(H, W)`` with N = H*W row-major tokens.

    Returns:
        Sparse ``(N, N)``: at most K*K entries in a row, in bands; less at the borders.
    """
    height, width = hw_shape
    size = kernel.shape[-1]
    tokens = torch.arange(height * width)
    rows, cols = tokens // width, tokens % width
    targets, sources, values = [], [], []
    for dy in range(size):
        for dx in range(size):
            y, x = rows + dy - size // 2, cols + dx - size // 2
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            targets.append(tokens[inside])
            sources.append((y * width + x)[inside])
            values.append(kernel[dy, dx].expand(len(targets[-1])))
    places = torch.stack([torch.cat(targets), torch.cat(sources)])
    return torch.sparse_coo_tensor(
        places, torch.cat(values), (len(tokens),) * 2, check_invariants=False
    ).coalesce()


def after_stretching(matrix: Tensor, m: int) -> Tensor:
    """``matrix @ S`` for the S that stretches m values to n along the token axis.

    That is what comes before the convolution where PVT reduces keys and values: ``F.interpolate`` with
    ``mode="linear"``, which takes each value from two neighbours.

    Args:
        matrix: sparse ``(l, n)``.
        m: values there are.

    Returns:
        Sparse ``(l, m)``.
    """
    targets, sources = matrix.indices()
    places = ((sources + 0.5).double() * (m / matrix.shape[1]) - 0.5).clamp(0, m - 1)
    left = places.long()
    right = (left + 1).clamp_max(m - 1)
    share = (places - left).to(matrix.dtype)
    indices = torch.stack([targets.repeat(2), torch.cat([left, right])])
    values = torch.cat([matrix.values() * (1 - share), matrix.values() * share])
    shape = (len(matrix), m)
    return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False).coalesce()


def value_matrix(windows: Windows, position: int, channel: int) -> Tensor:
    """M_DWC: all convolutions of the values of one channel, ``(n, m)``.

    Args:
        windows: with a convolution at least.
        position: of the head in ``windows.heads``.
        channel: of the head, 0 to d-1: each has a kernel of its own, and so a matrix.

    Returns:
        Sparse. Where keys are reduced, values are stretched first.
    """
    n, m = windows.queries.shape[1], windows.keys.shape[1]
    kernels = [c.kernels[position, channel] for c in windows.convolutions]
    matrix = sum_kernels(kernels, windows.query_shape)
    return matrix if n == m else after_stretching(matrix, m)


def sum_kernels(kernels: Sequence[Tensor], hw_shape: tuple[int, int]) -> Tensor:
    """The matrix of the sum of several convolutions; kernels of different sizes share their centre."""
    size = max(kernel.shape[-1] for kernel in kernels)
    total = sum(F.pad(kernel, [(size - kernel.shape[-1]) // 2] * 4) for kernel in kernels)
    return convolution_matrix(total, hw_shape)


def typical_channels(windows: Windows, position: int, count: int) -> list[int]:
    """Channels of a head by the size of their kernels: the median one, or ``count`` from small to large."""
    norms = sum(c.kernels[position].flatten(1).square().sum(1) for c in windows.convolutions)
    order = norms.argsort().tolist()
    if count == 1:
        return [order[(len(order) - 1) // 2]]
    count = min(count, len(order))
    return [order[round(i * (len(order) - 1) / (count - 1))] for i in range(count)]
