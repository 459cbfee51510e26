"""Cascade Mask R-CNN 3x (multi-scale) with FLatten-Swin-T: Swin's heads (4 convolutions, GIoU) and recipe."""

_base_ = [
    "mmdet::convnext/cascade-mask-rcnn_convnext-t-p4-w7_fpn_4conv1fc-giou_amp-ms-crop-3x_coco.py",
    "../_base_/no_decay.py",
]
custom_imports = dict(imports=["flatten_det"], allow_failed_imports=False)
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
