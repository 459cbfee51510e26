"""UperNet 160k on ADE20K with CSwin-S, the softmax baseline."""

_base_ = "./flatten-cswin-s_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        attn_types="SSSS",
        init_cfg=dict(
            checkpoint="https://github.com/microsoft/CSWin-Transformer/releases/download/v0.1.0/cswin_small_224.pth"
        ),
    ),
)
