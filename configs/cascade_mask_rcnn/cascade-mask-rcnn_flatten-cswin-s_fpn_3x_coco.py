"""Cascade Mask R-CNN 3x with FLatten-CSwin-S."""

_base_ = "./cascade-mask-rcnn_flatten-cswin-t_fpn_3x_coco.py"
model = dict(
    backbone=dict(
        arch="small",
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint="checkpoints/flatten_cswin_s.pth"),
    ),
)
