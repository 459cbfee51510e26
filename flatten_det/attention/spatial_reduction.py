"""PVT's spatial reduction of the tokens that become keys and values."""

from torch import Tensor, nn

from .layer_norm import layer_norm
from .maps import as_tokens
from .strided_convolution import strided_convolution
from .window import pad_to_multiple


def reduce_tokens(
    x: Tensor, hw_shape: tuple[int, int], ratio: int, conv: nn.Module, norm: nn.Module
) -> tuple[Tensor, tuple[int, int]]:
    """Merge each ``R x R`` patch of tokens into one by a strided convolution, then normalise.

    Maps that R does not divide are padded with zeros at the bottom and right.

    Args:
        x: ``(B, H*W, C)``.
        hw_shape: ``(H, W)``.
        ratio: R.
        conv: kernel and stride ``(R, R)``.
        norm: over C.

    Returns:
        Tokens ``(B, ceil(H/R)*ceil(W/R), C)`` and their map size.
    """
    B, _, C = x.shape
    image = pad_to_multiple(x.view(B, *hw_shape, C), (ratio, ratio)).permute(0, 3, 1, 2)
    image = strided_convolution(conv, image)
    return layer_norm(as_tokens(image), norm, for_product=True), tuple(image.shape[2:])
