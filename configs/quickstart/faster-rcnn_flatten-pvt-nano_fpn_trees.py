"""Tree crowns on aerial photographs: learned from tiles, tested on whole photographs, in minutes on a CPU."""

_base_ = "./mask-rcnn_flatten-pvt-nano_fpn_shapes.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    # Larger than a tile, which is cut after resizing: to resize whole photographs would take long.
    dict(type="RandomCrop", crop_size=(320, 320), allow_negative_crop=True),
    dict(type="RandomResize", scale=(320, 320), ratio_range=(0.8, 1.6), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(256, 256), allow_negative_crop=True),
    dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
    # MMDetection's own exchanges channels too, and crowns are known by their colour.
    dict(type="mmseg.PhotoMetricDistortion", hue_delta=9),
    dict(type="PackDetInputs"),
]
# At the size of the photograph.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale_factor=1.0, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
metainfo = dict(classes=("tree",), palette=[(255, 215, 0)])
auto_scale_lr = dict(base_batch_size=4)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type="CocoDataset",
        data_root="data/trees/",
        ann_file="train/_annotations.coco.json",
        data_prefix=dict(img="train/"),
        metainfo=metainfo,
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="CocoDataset",
        data_root="data/trees/",
        ann_file="val/_annotations.coco.json",
        data_prefix=dict(img="val/"),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="data/trees/val/_annotations.coco.json", metric="bbox")
test_evaluator = val_evaluator
model = dict(
    type="FasterRCNN",
    backbone=dict(pretrain_img_size=256),
    roi_head=dict(
        bbox_head=dict(num_classes=1, loss_cls=dict(loss_weight=1.0)),
        mask_roi_extractor=None,
        mask_head=None,
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=1000),
        rcnn=dict(
            assigner=dict(pos_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(num=256),
        ),
    ),
    # A photograph has hundreds of trees.
    test_cfg=dict(
        rpn=dict(nms_pre=2000, max_per_img=2000),
        rcnn=dict(max_per_img=1000),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
max_iters = 1500
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
default_hooks = dict(visualization=dict(interval=1))
