"""Tokens as a feature map and back.

The map of tokens is a view with the channels last, which convolutions take as it is. How the view is made
matters: ``transpose`` before ``unflatten`` gives a batch of one a stride in which torch does not recognise
the layout, and a depthwise convolution on the CPU took 20 times as long.
"""

from torch import Tensor


def as_image(tokens: Tensor, hw_shape: tuple[int, int]) -> Tensor:
    """``(B, H*W, C)`` -> ``(B, C, H, W)``, channels last: a view."""
    return tokens.unflatten(1, hw_shape).permute(0, 3, 1, 2)


def as_tokens(image: Tensor) -> Tensor:
    """``(B, C, H, W)`` -> ``(B, H*W, C)``: a view if the channels are last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)
