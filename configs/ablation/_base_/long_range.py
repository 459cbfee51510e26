"""The ablations' task, model and schedule: discs whose class a legend far away tells by their hue.

Convolutions do not reach from the discs to the legend: their distance is 72 px or more, while 7x7
kernels after strides of 4 and 8, the neck and the head together see 68 px. The norms of neck and head are
batch norms, as a group norm's mean over the map would carry the legend to every pixel.
"""

_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/default_runtime.py",
    "../../quickstart/_base_/nano.py",
]

num_classes = 2  # A brightness of the legend each; their names are the first ones of Shapes.
# The lowest 40 of 128 rows hold the objects.
shapes = dict(
    data_root="data/shapes-legend",
    image_size=(128, 64),
    num_images=dict(train=3000, val=400),
    object_size=(8, 12),
    objects_per_image=(6, 10),
    min_visible=0.9,
    texture_contrast=0.25,
    # Two hues are soon told apart, and lead the way to sixteen.
    legend=(2, 16),
    legend_classes=num_classes,
    legend_distance=72,
    metainfo=dict(classes=("background", "circle", "ring")),
)
model = dict(
    data_preprocessor=dict(size=None, size_divisor=32),
    pretrained=None,
    backbone=dict(
        _base_.nano_backbone,
        arch=dict(_base_.nano_backbone.arch, depths=(1, 1, 1, 1), sr_ratios=(1, 1, 1, 1)),
        out_indices=(0, 1),
        pretrain_img_size=(128, 64),
    ),
    neck=dict(in_channels=[32, 64], out_channels=32, num_outs=2, norm_cfg=dict(type="BN")),
    decode_head=dict(
        in_channels=[32, 32],
        in_index=[0, 1],
        feature_strides=[4, 8],
        channels=32,
        num_classes=1 + num_classes,
        dropout_ratio=0.0,
        norm_cfg=dict(type="BN"),
        # Nine of ten pixels are background.
        loss_decode=dict(class_weight=[0.1] + [1.0] * num_classes),
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="ShapesSegDataset", **shapes, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ShapesSegDataset", **shapes, split="val", test_mode=True, pipeline=train_pipeline
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

max_iters = 2000
optim_wrapper = dict(optimizer=dict(lr=3e-3))
auto_scale_lr = dict(base_batch_size=16)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=200)
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=100, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
log_processor = dict(by_epoch=False)
