"""Instance segmentation of Shapes in minutes, on a CPU."""

_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "mmdet::_base_/default_runtime.py",
    "./_base_/nano.py",
    "./_base_/shapes_detection.py",
]

model = dict(
    backbone=_base_.nano_backbone,
    neck=dict(in_channels=_base_.nano_dims, out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        # Shapes starts at 8 px: anchors of half the usual size.
        anchor_generator=dict(scales=[4]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=6),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=6),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(max_per_img=30),
    ),
)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=2),
    visualization=dict(draw=True, interval=20, score_thr=0.5),
)
log_processor = dict(by_epoch=False)
