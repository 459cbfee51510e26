"""The same on images that differ in size and aspect ratio, so that every batch has padding in it.

With 8 images in a test batch, box AP is that of one at a time: `model.backbone.mask_padding=False` shows what
it is otherwise.
"""

_base_ = "./retinanet_flatten-pvt-nano_fpn_shapes.py"

mixed = dict(data_root="data/shapes-mixed", image_size=((96, 96), (192, 192)))
test_pipeline = _base_.test_pipeline
test_pipeline[1] = dict(type="Resize", scale_factor=1.0, keep_ratio=True)
train_dataloader = dict(dataset=mixed)
val_dataloader = dict(batch_size=8, dataset=dict(**mixed, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="data/shapes-mixed/annotations/instances_val.json")
test_evaluator = val_evaluator
max_iters = 600
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], end=max_iters)]
