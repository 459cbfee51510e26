"""Plain linear attention: no focusing, no convolution."""

_base_ = "./_base_/long_range.py"

model = dict(backbone=dict(focusing_factor=1, kernel_size=0))
