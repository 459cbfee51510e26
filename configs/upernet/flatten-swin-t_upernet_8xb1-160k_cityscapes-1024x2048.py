"""UperNet 160k on Cityscapes at 1024x2048 with FLatten-Swin-T."""

_base_ = [
    "mmseg::_base_/models/upernet_swin.py",
    "../_base_/cityscapes_1024x2048.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/segmentation_160k_adamw.py",
    "../_base_/flatten.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768], num_classes=19),
    auxiliary_head=dict(in_channels=384, num_classes=19),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
