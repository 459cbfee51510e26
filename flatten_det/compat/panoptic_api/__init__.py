"""The part of ``panopticapi`` that MMDetection needs, under that name where it is not installed.

Its authors publish it by git only, and the copies on package indexes refuse NumPy 2. Panoptic masks are
PNG files whose colours are segment ids; the quality of predictions is PQ (Kirillov et al., "Panoptic
Segmentation", CVPR 2019). ``flatten_det_finders`` lets Python find this folder as ``panopticapi``.
"""
