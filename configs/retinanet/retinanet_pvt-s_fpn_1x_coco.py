"""RetinaNet 1x with PVT-S, the softmax baseline."""

_base_ = "./retinanet_flatten-pvt-s_fpn_1x_coco.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_small.pth"
        ),
    ),
)
