"""Focused linear attention: the equation, fast implementations of it, and the layer. Needs torch only.

``reference`` reads like the paper. ``dispatch`` chooses among it, ``plain`` (few operations of torch),
``tiled`` (tiles that stay in the CPU's cache) and ``gpu`` (Triton kernels); ``ops`` registers the last two as
operators of torch. ``module`` is the layer, which ``tiles`` computes as a whole.
"""

from .dispatch import focused_linear_attention
from .maps import resize_grid
from .module import FocusedLinearAttention
from .reference import focused_map

__all__ = ["FocusedLinearAttention", "focused_linear_attention", "focused_map", "resize_grid"]
