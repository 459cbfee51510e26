"""UperNet 160k on ADE20K with FLatten-Swin-B."""

_base_ = "./flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="base", init_cfg=dict(checkpoint="checkpoints/flatten_swin_b.pth")),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
