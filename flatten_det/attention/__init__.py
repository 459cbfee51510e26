"""Focused Linear Attention: the equation and the layer. Needs torch only."""

from .grid import resize_grid
from .module import FocusedLinearAttention
from .reference import focused_linear_attention, focused_map

__all__ = ["FocusedLinearAttention", "focused_linear_attention", "focused_map", "resize_grid"]
