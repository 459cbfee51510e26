"""Semantic FPN 80k on ADE20K with FLatten-PVTv2-B1."""

_base_ = "./flatten-pvtv2-b0_semantic-fpn_4xb4-80k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="b1", init_cfg=dict(checkpoint="checkpoints/flatten_pvtv2_b1.pth")),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
