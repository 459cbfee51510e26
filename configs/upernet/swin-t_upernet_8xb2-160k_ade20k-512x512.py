"""UperNet 160k on ADE20K with Swin-T, the softmax baseline."""

_base_ = "./flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_tiny_patch4_window7_224.pth"
        ),
    ),
)
