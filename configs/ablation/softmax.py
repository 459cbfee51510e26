"""Softmax attention over the same tokens as the linear variants: no spatial reduction, no convolution."""

_base_ = "./_base_/long_range.py"

model = dict(backbone=dict(attn_types=("S", "S", "S", "S")))
