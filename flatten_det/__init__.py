"""Dense prediction with the FLatten Transformer.

Importing it registers the backbones, a neck, the data sets and the visualizer, and lets mmengine read
checkpoints, pickle and YAML files as data only, and pass on to the backbones which part of an image is
padding.
"""

from importlib.util import find_spec

import flatten_det_finders  # noqa: F401  for where the .pth file is not read

__version__ = "0.1.0"

# `flatten_det.attention` alone needs torch only, so it must be importable without the frameworks.
if find_spec("mmengine") is not None:
    from . import backbones, data, necks  # noqa: F401
    from .compat import patches
    from .compat.moved import find_old_places
    from .train.optimizer import LayerDecayOptimWrapperConstructor

    patches.read_mmengine_checkpoints_as_data()
    patches.read_mmengine_files_as_data()
    patches.tell_backbones_of_padding()
    patches.decay_layers_of_our_backbones(LayerDecayOptimWrapperConstructor)
    find_old_places()
if find_spec("mmdet") is not None:
    from .predict import drawing  # noqa: F401
