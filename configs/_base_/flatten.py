"""What all configs of the zoo share: the registrations, and the parameters without weight decay."""

custom_imports = dict(imports=["flatten_det"], allow_failed_imports=False)
no_decay = {
    "norm": dict(decay_mult=0.0),
    "pos_embed": dict(decay_mult=0.0),
    "positional_encoding": dict(decay_mult=0.0),
    "relative_position_bias_table": dict(decay_mult=0.0),
}
