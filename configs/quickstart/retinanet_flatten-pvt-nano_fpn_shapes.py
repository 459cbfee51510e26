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
        # Objects start at 16 px: a pyramid from stride 4 instead of 8, of four levels.
        start_level=0,
        add_extra_convs=False,
        num_outs=4,
        # From random weights, a pyramid without norms takes long to learn anything.
        norm_cfg=dict(type="GN", num_groups=8),
    ),
    bbox_head=dict(
        num_classes=6,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=8),
        anchor_generator=dict(strides=[4, 8, 16, 32], scales_per_octave=1),
    ),
    test_cfg=dict(nms_pre=200, max_per_img=30),
)
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=2),
    visualization=dict(draw=True, interval=20, score_thr=0.4),
)
log_processor = dict(by_epoch=False)
visualizer = dict(type="EnlargingDetVisualizer")
