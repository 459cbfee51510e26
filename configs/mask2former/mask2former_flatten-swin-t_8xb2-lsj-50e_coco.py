"""Mask2Former for instance segmentation with FLatten-Swin-T."""

_base_ = [
    "mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py",
    "../_base_/mask2former_flatten_swin.py",
]
custom_imports = dict(imports=["flatten_det"], allow_failed_imports=False)
model = dict(backbone=_base_.mask2former_backbone)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.backbone_keys))
