"""Mask2Former for semantic segmentation with FLatten-Swin-T."""

_base_ = [
    "mmseg::mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512.py",
    "../_base_/mask2former_flatten_swin.py",
]
custom_imports = dict(imports=["mmdet.models", "flatten_det"], allow_failed_imports=False)
model = dict(backbone=_base_.mask2former_backbone)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.backbone_keys))
