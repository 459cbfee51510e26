"""RetinaNet 1x with FLatten-PVTv2-B0."""

_base_ = "./retinanet_flatten-pvt-t_fpn_1x_coco.py"
model = dict(
    backbone=dict(
        type="FLattenPVTv2",
        arch="b0",
        init_cfg=dict(checkpoint="checkpoints/flatten_pvtv2_b0.pth"),
    ),
    neck=dict(in_channels=[32, 64, 160, 256]),
)
