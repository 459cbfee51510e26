"""Instance segmentation of Shapes in minutes, on a CPU."""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "./_base_/nano.py",
    "./_base_/shapes_detection.py",
]

model = dict(
    backbone=_base_.nano_backbone,
    neck=dict(
        in_channels=_base_.nano_dims,
        out_channels=64,
        # From random weights, a pyramid without norms takes long to learn anything.
        norm_cfg=dict(type="GN", num_groups=8),
        num_outs=4,
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16, 32]),
    ),
    roi_head=dict(
        # Objects are small: from a side of 32 px on they are taken from the second level.
        bbox_roi_extractor=dict(out_channels=64, finest_scale=16, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            num_classes=6,
            reg_class_agnostic=True,
            loss_cls=dict(loss_weight=2.0),
        ),
        mask_roi_extractor=dict(
            out_channels=64, finest_scale=16, roi_layer=dict(output_size=7, sampling_ratio=1)
        ),
        mask_head=dict(
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=6,
            roi_feat_size=7,
            class_agnostic=True,
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(
            # Boxes that overlap an object by half show too little of its shape to learn from.
            assigner=dict(pos_iou_thr=0.6, min_pos_iou=0.6),
            sampler=dict(num=32, pos_fraction=0.5),
            mask_size=14,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(max_per_img=30),
    ),
)
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=2),
    visualization=dict(draw=True, interval=20, score_thr=0.5),
)
log_processor = dict(by_epoch=False)
visualizer = dict(type="EnlargingDetVisualizer")
