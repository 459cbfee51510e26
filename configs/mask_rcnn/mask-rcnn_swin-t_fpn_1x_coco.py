"""Mask R-CNN 1x with Swin-T, the softmax baseline."""

_base_ = "./mask-rcnn_flatten-swin-t_fpn_1x_coco.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth"
        ),
    ),
)
