"""Mask R-CNN 1x with FLatten-PVT-L."""

_base_ = "./mask-rcnn_flatten-pvt-t_fpn_1x_coco.py"
model = dict(
    backbone=dict(arch="large", init_cfg=dict(checkpoint="checkpoints/flatten_pvt_l.pth")),
)
