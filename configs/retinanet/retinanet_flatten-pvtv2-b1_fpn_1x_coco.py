"""RetinaNet 1x with FLatten-PVTv2-B1."""

_base_ = "./retinanet_flatten-pvtv2-b0_fpn_1x_coco.py"
model = dict(
    backbone=dict(arch="b1", init_cfg=dict(checkpoint="checkpoints/flatten_pvtv2_b1.pth")),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
