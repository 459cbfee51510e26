"""Cascade Mask R-CNN 3x with FLatten-Swin-S."""

_base_ = "./cascade-mask-rcnn_flatten-swin-t_fpn_3x_coco.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="checkpoints/flatten_swin_s.pth")),
)
