"""Dense prediction with the FLatten Transformer.

Importing it registers the backbones, the data sets and the visualizer, and lets mmengine read
checkpoints as data only.
"""

from importlib.util import find_spec

import flatten_det_finders  # noqa: F401  for where the .pth file is not read

__version__ = "0.1.0"

# `flatten_det.attention` alone needs torch only, so it must be importable without the frameworks.
if find_spec("mmengine") is not None:
    from . import backbones, datasets  # noqa: F401
    from .checkpoints.safe_loading import read_mmengine_checkpoints_as_data

    read_mmengine_checkpoints_as_data()
if find_spec("mmdet") is not None:
    from . import visualization  # noqa: F401
