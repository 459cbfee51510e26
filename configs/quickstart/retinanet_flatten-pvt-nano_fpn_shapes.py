"""Object detection of Shapes in minutes, on a CPU."""

_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "./_base_/nano.py",
    "./_base_/shapes_detection.py",
]

model = dict(
    backbone=_base_.nano_backbone,
    neck=dict(
        in_channels=_base_.nano_dims,
        out_channels=64,
        add_extra_convs=False,
        num_outs=3,
        # From random weights, a pyramid without norms takes long to learn anything.
        norm_cfg=dict(type="GN", num_groups=8),
    ),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=8),
        # Boxes of about 24, 48 and 96 px that are nearly square, as the objects are.
        anchor_generator=dict(
            strides=[8, 16, 32], octave_base_scale=3, scales_per_octave=2, ratios=[1.0]
        ),
    ),
    test_cfg=dict(nms_pre=200, max_per_img=30),
)
# With 600 iterations, rounding (the number of threads) decides between box AP50 0.4 and 0.86.
max_iters = 900
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=2),
    visualization=dict(draw=True, interval=20, score_thr=0.4),
)
log_processor = dict(by_epoch=False)
visualizer = dict(type="EnlargingDetVisualizer")
