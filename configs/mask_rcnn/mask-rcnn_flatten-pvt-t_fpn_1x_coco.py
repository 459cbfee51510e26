"""Mask R-CNN 1x with FLatten-PVT-T: PVT's recipe (AdamW 2e-4 at batch 16)."""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/flatten.py",
]
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenPVT",
        arch="tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_pvt_t.pth"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
