"""UperNet 160k on ADE20K with FLatten-Swin-S."""

_base_ = "./flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="checkpoints/flatten_swin_s.pth")),
)
