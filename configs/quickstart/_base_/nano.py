"""A backbone of 1.8 M parameters that learns Shapes on two CPU cores, and the schedule for it."""

custom_imports = dict(imports=["flatten_det"], allow_failed_imports=False)

nano_backbone = dict(
    _delete_=True,
    type="FLattenPVT",
    arch=dict(
        embed_dims=(32, 64, 128, 256),
        num_heads=(1, 2, 4, 8),
        mlp_ratios=(4, 4, 4, 4),
        depths=(1, 2, 3, 1),
    ),
    pretrain_img_size=128,
    # From random weights, layers this narrow start faster from Xavier's variance than from 0.02.
    init_cfg=dict(type="Xavier", layer="Linear", distribution="uniform"),
)
nano_dims = [32, 64, 128, 256]

max_iters = 600
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-3, betas=(0.9, 0.97), weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
    paramwise_cfg=dict(
        custom_keys={
            "norm": dict(decay_mult=0.0),
            "pos_embed": dict(decay_mult=0.0),
            "positional_encoding": dict(decay_mult=0.0),
        }
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=50, by_epoch=False),
    dict(type="CosineAnnealingLR", eta_min=1e-6, begin=50, end=max_iters, by_epoch=False),
]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=max_iters)
# The batch size that the learning rate is for, as wherever this is written.
auto_scale_lr = dict(base_batch_size=12)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
# The same pictures in the same order for everyone who follows the README.
randomness = dict(seed=0)
