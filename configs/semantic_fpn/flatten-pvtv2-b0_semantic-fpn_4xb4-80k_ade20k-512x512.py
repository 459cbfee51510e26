"""Semantic FPN 80k on ADE20K with FLatten-PVTv2-B0."""

_base_ = "./flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        type="FLattenPVTv2",
        arch="b0",
        init_cfg=dict(checkpoint="checkpoints/flatten_pvtv2_b0.pth"),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
