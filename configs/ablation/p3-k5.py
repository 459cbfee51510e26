"""The whole method, as in the paper."""

_base_ = "./_base_/long_range.py"

model = dict(backbone=dict(focusing_factor=3, kernel_size=5))
