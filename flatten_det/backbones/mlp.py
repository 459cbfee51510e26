"""The MLPs of the blocks; at inference on the CPU they go through the tokens in portions.

The hidden activations are four to eight times as large as the tokens. As a whole they would be fresh
memory, whose page faults take longer than the arithmetic; a portion of them is memory used again.
"""

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# Entries of the hidden activations of a portion: 4 MB in float32.
_PORTION = 1 << 20


def _in_portions(x: Tensor, hidden_dim: int) -> bool:
    """Whether portions pay: not where autograd keeps everything, nor where a compiler plans the memory.

    Nor where somebody counts: rows that two portions need would count twice.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    if is_in_torch_dispatch_mode():
        return False
    return x.shape[:-1].numel() * hidden_dim > 2 * _PORTION and not torch.jit.is_tracing()


class TokenMlp(Mlp):
    """Two linear layers with a GELU in between, for each token by itself; arguments are timm's."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``."""
        hidden_dim = self.fc1.out_features
        if not _in_portions(x, hidden_dim):
            return super().forward(x)
        tokens = x.flatten(0, 1)
        out = torch.empty_like(tokens)
        portion = max(_PORTION // hidden_dim, 1)
        for part, into in zip(tokens.split(portion), out.split(portion), strict=True):
            into.copy_(super().forward(part))
        return out.view(x.shape)


class DepthwiseMlp(nn.Module):
    """PVTv2's MLP with a 3x3 depthwise convolution before the activation (arXiv 2106.13797, Sec. 3.2).

    Args:
        dim: channels C.
        hidden_dim: channels in between.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``."""
        hidden_dim = self.fc1.out_features
        height, width = hw_shape
        if not _in_portions(x, hidden_dim):
            return self._rows(x, hw_shape, slice(0, height))
        out = torch.empty_like(x)
        rows = max(_PORTION // (hidden_dim * width), 1)
        for image, into in zip(x.split(1), out.split(1), strict=True):
            for top in range(0, height, rows):
                part = slice(top, min(top + rows, height))
                # One row more on either side, which the convolution sees.
                around = slice(max(top - 1, 0), min(part.stop + 1, height))
                tokens = image[:, around.start * width : around.stop * width]
                within = slice(part.start - around.start, part.stop - around.start)
                into[:, part.start * width : part.stop * width] = self._rows(
                    tokens, (around.stop - around.start, width), within
                )
        return out

    def _rows(self, x: Tensor, hw_shape: tuple[int, int], rows: slice) -> Tensor:
        """Rows of the result on the map ``x (B, H*W, C)``."""
        image = self.dwconv(self.fc1(x).transpose(1, 2).unflatten(2, hw_shape))
        return self.fc2(self.act(image[:, :, rows].flatten(2).transpose(1, 2)))
