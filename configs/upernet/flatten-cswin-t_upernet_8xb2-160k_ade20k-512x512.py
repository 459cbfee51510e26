"""UperNet 160k on ADE20K with FLatten-CSwin-T, in Swin's recipe."""

_base_ = "./flatten-swin-t_upernet_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(type="FLattenCSwin", init_cfg=dict(checkpoint="checkpoints/flatten_cswin_t.pth")),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
