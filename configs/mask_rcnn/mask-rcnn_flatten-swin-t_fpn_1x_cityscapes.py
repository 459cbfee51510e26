"""Mask R-CNN 1x on Cityscapes instances at 2048x1024 with FLatten-Swin-T."""

_base_ = ["mmdet::cityscapes/mask-rcnn_r50_fpn_1x_cityscapes.py", "../_base_/flatten.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# At batch 8; the inherited file starts from COCO's ResNet-50, which does not fit.
load_from = None
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=5e-5, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
auto_scale_lr = dict(base_batch_size=8)
