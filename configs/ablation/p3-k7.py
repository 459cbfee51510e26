"""The whole method with another kernel of the convolution."""

_base_ = "./_base_/long_range.py"

model = dict(backbone=dict(focusing_factor=3, kernel_size=7))
