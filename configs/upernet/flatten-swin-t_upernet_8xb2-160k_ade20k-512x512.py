"""UperNet 160k on ADE20K with FLatten-Swin-T: Swin's recipe, which is inherited."""

_base_ = [
    "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
    "../_base_/flatten.py",
]
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
)
auto_scale_lr = dict(base_batch_size=16)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
