"""Semantic segmentation of Shapes in minutes, on a CPU."""

_base_ = [
    "mmseg::_base_/models/fpn_r50.py",
    "mmseg::_base_/default_runtime.py",
    "./_base_/nano.py",
    "./_base_/shapes_segmentation.py",
]

model = dict(
    data_preprocessor=dict(size_divisor=32),
    pretrained=None,
    backbone=_base_.nano_backbone,
    neck=dict(
        in_channels=_base_.nano_dims,
        out_channels=64,
        # From random weights, a pyramid without norms takes long to learn anything.
        norm_cfg=dict(type="GN", num_groups=8),
    ),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=32,
        num_classes=7,
        dropout_ratio=0.0,
        norm_cfg=dict(type="GN", num_groups=8),
        # Six of seven pixels are background.
        loss_decode=dict(class_weight=[0.3, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ),
)
# Pixels tell less about an object than its box does: longer than for the detectors.
max_iters = 850
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=200, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook", draw=True, interval=20),
)
