"""Mask R-CNN 1x with FLatten-DeiT-T and ViTDet's pyramid: Swin's recipe (AdamW 1e-4 at batch 16)."""

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
        type="FLattenDeiT",
        arch="tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_deit_t.pth"),
    ),
    neck=dict(_delete_=True, type="SimpleFeaturePyramid", in_channels=192, num_outs=5),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
