"""What the configs of the zoo share: the registrations, and the parameters without weight decay."""

_base_ = "./no_decay.py"
custom_imports = dict(imports=["flatten_det"], allow_failed_imports=False)
