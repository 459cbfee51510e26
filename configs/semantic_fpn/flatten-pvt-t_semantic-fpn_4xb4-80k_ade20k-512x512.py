"""Semantic FPN 80k on ADE20K with FLatten-PVT-T: PVT's recipe (AdamW 1e-4 at batch 16)."""

_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/datasets/ade20k.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_80k.py",
    "../_base_/flatten.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type="FLattenPVT",
        arch="tiny",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_pvt_t.pth"),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
    decode_head=dict(num_classes=150),
)
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=_base_.no_decay),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, begin=0, end=80000, by_epoch=False)]
