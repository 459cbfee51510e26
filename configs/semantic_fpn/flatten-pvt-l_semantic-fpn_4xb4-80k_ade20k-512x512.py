"""Semantic FPN 80k on ADE20K with FLatten-PVT-L."""

_base_ = "./flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="large", init_cfg=dict(checkpoint="checkpoints/flatten_pvt_l.pth")),
)
