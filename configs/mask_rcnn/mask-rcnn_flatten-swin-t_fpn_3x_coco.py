"""Mask R-CNN 3x (multi-scale) with FLatten-Swin-T: Swin's recipe, which is inherited."""

_base_ = ["mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py", "../_base_/flatten.py"]
model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.no_decay))
