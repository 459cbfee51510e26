"""Mask R-CNN 1x with FLatten-CSwin-T, in Swin's recipe."""

_base_ = "./mask-rcnn_flatten-swin-t_fpn_1x_coco.py"
model = dict(
    backbone=dict(type="FLattenCSwin", init_cfg=dict(checkpoint="checkpoints/flatten_cswin_t.pth")),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
