"""Mask R-CNN 1x with Swin-S, the softmax baseline."""

_base_ = "./mask-rcnn_flatten-swin-s_fpn_1x_coco.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_small_patch4_window7_224.pth"
        ),
    ),
)
