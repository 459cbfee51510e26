"""The whole method with another focusing factor."""

_base_ = "./_base_/long_range.py"

model = dict(backbone=dict(focusing_factor=2, kernel_size=5))
