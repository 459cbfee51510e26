"""The MLPs of the blocks; at inference on the CPU they go through the tokens in portions.

The hidden activations are four to eight times as large as the tokens. As a whole they would be fresh
memory, whose page faults take longer than the arithmetic; a portion of them is memory used again. Norm,
MLP and sum go through a portion together and end where it began, so that no other tensor of the tokens'
size is needed.
"""

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from ..attention.eager import is_plain, is_plain_depthwise
from ..attention.maps import Padding, as_image, as_tokens

# Entries of the hidden activations of a portion: 4 MB in float32.
_MLP_PORTION = 1 << 20


def adds_in_portions(mlp: nn.Module, x: Tensor, norm: nn.Module) -> bool:
    """Whether ``mlp`` can add itself, after ``norm``, to ``x`` in portions, and that is worth it.

    It is where the hidden activations are fresh memory. What is not plain may see all tokens at once.
    """
    if not isinstance(mlp, TokenMlp | DepthwiseMlp) or not x.is_contiguous():
        return False
    linear = (mlp.fc1, mlp.fc2)
    if not all(is_plain(fc, nn.Linear) for fc in linear):
        return False
    if x.shape[:-1].numel() * mlp.fc1.out_features <= 2 * _MLP_PORTION:
        return False
    is_norm = is_plain(norm, nn.LayerNorm) and norm.normalized_shape == (x.shape[-1],)
    return is_norm and is_plain(mlp.act, nn.GELU) and mlp.sees_portions()


class TokenMlp(Mlp):
    """Two linear layers with a GELU in between, for each token by itself; arguments are timm's."""

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int] | None = None,
        padding: Padding | None = None,
    ) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``; where the tokens lie on the map does not matter."""
        return super().forward(x)

    def sees_portions(self) -> bool:
        """Whether what is beside the linear layers and the activation does the same to a portion."""
        drops = (self.drop1, self.drop2)
        return is_plain(self.norm, nn.Identity) and all(
            is_plain(drop, nn.Dropout) and not (drop.training and drop.p) for drop in drops
        )

    def add_in_portions(self, x: Tensor, hw_shape: tuple[int, int], norm: nn.Module) -> None:
        """Add the MLP of ``norm(x)`` to the ``x (B, N, C)`` that it :func:`adds_in_portions`, in place."""
        tokens = max(_MLP_PORTION // self.fc1.out_features, 1)
        hidden = torch.empty(tokens, self.fc1.out_features) if self._is_exact(x) else None
        for part in x.flatten(0, 1).split(tokens):
            if hidden is None:
                part += self(norm(part))
            else:
                self._add(norm(part), hidden[: len(part)], part)

    def _is_exact(self, x: Tensor) -> bool:
        """Whether nothing but two products and a GELU is to be computed, in float32."""
        linear = (self.fc1, self.fc2)
        return (
            not torch.is_autocast_enabled("cpu")
            and all(fc.bias is not None for fc in linear)
            and {x.dtype, *(fc.weight.dtype for fc in linear)} == {torch.float32}
        )

    def _add(self, x: Tensor, hidden: Tensor, out: Tensor) -> None:
        """Add the MLP of ``x (n, C)`` to ``out``; ``hidden`` is memory for what is in between."""
        torch.addmm(self.fc1.bias, x, self.fc1.weight.t(), out=hidden)
        torch.ops.aten.gelu_(hidden, approximate=self.act.approximate)
        out.add_(self.fc2.bias).addmm_(hidden, self.fc2.weight.t())


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

    def forward(
        self, x: Tensor, hw_shape: tuple[int, int], padding: Padding | None = None
    ) -> Tensor:
        """``(B, N, C)`` with N = H*W of ``hw_shape`` -> ``(B, N, C)``.

        With ``padding``, each map is computed as alone, and what the result has in the padding is of no use.
        """
        return self._rows(x, hw_shape, slice(0, hw_shape[0]), padding)

    def sees_portions(self) -> bool:
        """Whether what is beside the linear layers and the activation does the same to rows of the map."""
        return is_plain_depthwise(self.dwconv) and self.dwconv.kernel_size == (3, 3)

    def add_in_portions(self, x: Tensor, hw_shape: tuple[int, int], norm: nn.Module) -> None:
        """Add the MLP of ``norm(x)`` to the ``x (B, N, C)`` that it :func:`adds_in_portions`, in place."""
        height, width = hw_shape
        rows = max(_MLP_PORTION // (self.fc1.out_features * width), 1)
        for image in x.split(1):
            above = image[:, :0]  # The row above a portion as it was before its own sum.
            for top in range(0, height, rows):
                bottom = min(top + rows, height)
                part = image[:, top * width : bottom * width]
                # One row more on either side, which the convolution sees.
                below = image[:, bottom * width : (bottom + 1) * width]
                tokens = torch.cat([above, part, below], dim=1)
                above = part[:, -width:].clone()
                first = 1 if top else 0
                own = slice(first, first + bottom - top)
                part += self._rows(norm(tokens), (tokens.shape[1] // width, width), own)

    def _rows(
        self, x: Tensor, hw_shape: tuple[int, int], rows: slice, padding: Padding | None = None
    ) -> Tensor:
        """Rows of the result on the map ``x (B, H*W, C)``."""
        hidden = self.fc1(x)
        if padding is not None:
            hidden = hidden.masked_fill(padding.mask, 0)
        image = self.dwconv(as_image(hidden, hw_shape))
        return self.fc2(self.act(as_tokens(image[:, :, rows])))
