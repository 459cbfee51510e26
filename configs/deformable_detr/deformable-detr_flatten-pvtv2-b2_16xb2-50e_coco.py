"""Deformable DETR, 50 epochs, with FLatten-PVTv2-B2."""

_base_ = ["mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", "../_base_/flatten.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenPVTv2",
        arch="b2",
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_pvtv2_b2.pth"),
    ),
    neck=dict(in_channels=[128, 320, 512]),
)
