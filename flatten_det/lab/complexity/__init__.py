"""Parameters and multiply-adds of backbones, detectors and segmentors.

One multiply-add is what papers, MMDetection and MMSegmentation call a FLOP: half of the floating-point
operations.

Counted is every operator that multiplies matrices or convolves, whichever module or function runs it:
linear layers, ``@``, ``einsum``, convolutions (depthwise, transposed and deformable ones too), softmax
attention as its two products whatever kernel computes it, and focused linear attention as one operator
with its products; its depthwise convolution is a module of its own, which a counter sees called.

Not counted, as in papers: biases, norms, activations, softmax, pooling, resizing and the focused map's
powers; post-processing such as NMS; auxiliary heads.

Named, because there is no formula (:attr:`Complexity.uncounted`): sampling (:data:`SAMPLING`), as in
deformable attention, and what nothing is known of, such as an operator of an extension. What a compiled
mmcv runs does not pass torch's dispatcher: nobody sees it.

:mod:`~flatten_det.lab.complexity.paper` counts as published numbers do.
"""

from .counter import SAMPLING, Complexity, count_macs
from .target import build_without_values, count_backbone, count_model

__all__ = [
    "SAMPLING",
    "Complexity",
    "build_without_values",
    "count_backbone",
    "count_macs",
    "count_model",
]
