"""UperNet 160k on ADE20K with FLatten-CSwin-B."""

_base_ = "./flatten-cswin-t_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        arch="base", drop_path_rate=0.6, init_cfg=dict(checkpoint="checkpoints/flatten_cswin_b.pth")
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
