"""Mask R-CNN with FLatten-Swin-T, large-scale jitter to 1024 px, 100 epochs at batch 64."""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::common/lsj-100e_coco-instance.py",
    "../_base_/flatten.py",
]
image_size = (1024, 1024)
model = dict(
    data_preprocessor=dict(
        # One size for all batches: no shape is met twice only by chance, and memory is constant.
        batch_augments=[
            dict(
                type="BatchFixedSizePad",
                size=image_size,
                img_pad_value=0,
                pad_mask=True,
                mask_pad_value=0,
            )
        ]
    ),
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=4e-4, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
