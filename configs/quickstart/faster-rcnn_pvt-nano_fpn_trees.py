"""The softmax twin of ``faster-rcnn_flatten-pvt-nano_fpn_trees.py``."""

_base_ = "./faster-rcnn_flatten-pvt-nano_fpn_trees.py"

model = dict(backbone=dict(attn_types=("S", "S", "S", "S")))
