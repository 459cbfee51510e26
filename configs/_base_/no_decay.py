"""The parameters without weight decay."""

no_decay = {
    "norm": dict(decay_mult=0.0),
    "pos_embed": dict(decay_mult=0.0),
    "positional_encoding": dict(decay_mult=0.0),
    "relative_position_bias_table": dict(decay_mult=0.0),
}
