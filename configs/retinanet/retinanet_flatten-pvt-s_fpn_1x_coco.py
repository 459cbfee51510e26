"""RetinaNet 1x with FLatten-PVT-S."""

_base_ = "./retinanet_flatten-pvt-t_fpn_1x_coco.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="checkpoints/flatten_pvt_s.pth")),
)
