"""Semantic FPN 80k on ADE20K with PVT-T, the softmax baseline."""

_base_ = "./flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/whai362/PVT/releases/download/v2/pvt_tiny.pth"
        ),
    ),
)
