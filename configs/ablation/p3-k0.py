"""Focused linear attention without the convolution."""

_base_ = "./_base_/long_range.py"

model = dict(backbone=dict(focusing_factor=3, kernel_size=0))
