"""Mask R-CNN 1x with FLatten-PVTv2-B4."""

_base_ = "./mask-rcnn_flatten-pvtv2-b0_fpn_1x_coco.py"
model = dict(
    backbone=dict(arch="b4", init_cfg=dict(checkpoint="checkpoints/flatten_pvtv2_b4.pth")),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
