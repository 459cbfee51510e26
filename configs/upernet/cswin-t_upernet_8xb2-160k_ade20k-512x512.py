"""UperNet 160k on ADE20K with CSwin-T, the softmax baseline."""

_base_ = "./flatten-cswin-t_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, depths=(1, 2, 21, 1)),
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0/cswin_tiny_224.pth"
        ),
    ),
)
