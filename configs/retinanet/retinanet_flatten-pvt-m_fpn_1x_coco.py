"""RetinaNet 1x with FLatten-PVT-M."""

_base_ = "./retinanet_flatten-pvt-t_fpn_1x_coco.py"
model = dict(
    backbone=dict(arch="medium", init_cfg=dict(checkpoint="checkpoints/flatten_pvt_m.pth")),
)
