"""SegFormer's head, 160k on Cityscapes at 1024x2048, with FLatten-PVTv2-B2."""

_base_ = [
    "mmseg::_base_/models/segformer_mit-b0.py",
    "../_base_/cityscapes_1024x2048.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/segmentation_160k_adamw.py",
    "../_base_/flatten.py",
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _delete_=True,
        type="FLattenPVTv2",
        arch="b2",
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_pvtv2_b2.pth"),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_base_.no_decay, head=dict(lr_mult=10.0))))
