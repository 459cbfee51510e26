"""Cityscapes for semantic segmentation at its full size of 1024x2048."""

_base_ = "mmseg::_base_/datasets/cityscapes_1024x1024.py"
crop_size = (1024, 2048)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
auto_scale_lr = dict(base_batch_size=8)
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=train_pipeline))
