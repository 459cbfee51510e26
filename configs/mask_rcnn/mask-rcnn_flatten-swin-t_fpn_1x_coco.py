"""Mask R-CNN 1x with FLatten-Swin-T: Swin's recipe, which is inherited."""

_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
custom_imports = dict(imports=["flatten_det"], allow_failed_imports=False)
pretrained = "checkpoints/flatten_swin_t.pth"

model = dict(
    backbone=dict(
        _delete_=True,
        type="FLattenSwin",
        arch="tiny",
        drop_path_rate=0.2,
        init_cfg=dict(type="Pretrained", checkpoint=pretrained),
    ),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"positional_encoding": dict(decay_mult=0.0)}))
