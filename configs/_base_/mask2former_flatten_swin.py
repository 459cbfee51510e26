"""FLatten-Swin in Mask2Former: a tenth of the learning rate, no decay for norms and positions."""

mask2former_backbone = dict(
    _delete_=True,
    type="FLattenSwin",
    arch="tiny",
    drop_path_rate=0.3,
    init_cfg=dict(type="Pretrained", checkpoint="checkpoints/flatten_swin_t.pth"),
)
backbone_keys = {
    key: dict(lr_mult=0.1, decay_mult=0.0)
    for key in (
        "backbone.norm",
        "backbone.patch_embed.norm",
        "downsample.norm",
        ".norm1.",
        ".norm2.",
        "positional_encoding",
    )
}
