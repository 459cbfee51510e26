"""The softmax twin of ``retinanet_flatten-pvt-nano_fpn_trees.py``."""

_base_ = "./retinanet_flatten-pvt-nano_fpn_trees.py"

model = dict(backbone=dict(attn_types=("S", "S", "S", "S")))
