"""DINO (4 scales, 12 epochs) with FLatten-Swin-T."""

_base_ = ["mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py", "../_base_/flatten.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
