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


def stretching_matrix(m: int, n: int) -> Tensor:
    """The matrix that stretches m values to n along the token axis, ``(n, m)`` in float64.

    Where PVT reduces keys and values, that is what comes before the convolution.
    """
    unit = torch.eye(m, dtype=torch.float64)[None]
    return F.interpolate(unit, size=n, mode="linear", align_corners=False)[0].T


def value_matrix(windows: Windows, position: int, channel: int) -> Tensor:
    """M_DWC: all convolutions of the values of one channel, ``(n, m)``.

    Args:
        windows: with a convolution at least.
        position: of the head in ``windows.heads``.
        channel: of the head, 0 to d-1: each has a kernel of its own, and so a matrix.

    Returns:
        Sparse where keys are not reduced; else dense, because values are stretched first.
    """
    n, m = windows.queries.shape[1], windows.keys.shape[1]
    kernels = [c.kernels[position, channel] for c in windows.convolutions]
    matrix = sum_kernels(kernels, windows.query_shape)
    return matrix if n == m else matrix @ stretching_matrix(m, n).to(kernels[0])


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
