"""RetinaNet 1x with PVTv2-B1, the softmax baseline."""

_base_ = "./retinanet_flatten-pvtv2-b1_fpn_1x_coco.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth"
        ),
    ),
)
