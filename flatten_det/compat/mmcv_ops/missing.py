"""The ops that have no compile-free version: importing one fails as if mmcv did not have it.

Packages ask with ``try: from mmcv.ops import ...`` and have something else to do without; a name that
only failed when called would take that from them. mmcv itself cannot be imported without all of its
names, so they are there for it, and gone from its modules when it has loaded.
"""

import sys
from types import ModuleType

# Names that mmcv.ops exports. Not among them are ops that mmcv also has in Python, for the CPU:
# bias_act, filtered_lrelu, fused_bias_leakyrelu, upfirdn2d and what is made of them.
MISSING = set(
    """
    BezierAlign BorderAlign Correlation DynamicScatter PointsSampler PrRoIPool QueryAndGroup
    RiRoIAlignRotated RoIAlignRotated RoIAwarePool3d RoIPointPool3d SparseConv2d SparseConv3d
    SparseConvTranspose2d SparseConvTranspose3d SparseInverseConv2d SparseInverseConv3d
    SparseMaxPool2d SparseMaxPool3d SubMConv2d SubMConv3d TINShift Voxelization
    active_rotated_filter assign_score_withk ball_query bezier_align border_align box_iou_quadri
    box_iou_rotated boxes_iou3d boxes_iou_bev boxes_overlap_bev chamfer_distance contour_expand
    convex_giou convex_iou diff_iou_rotated_2d diff_iou_rotated_3d dynamic_scatter
    furthest_point_sample furthest_point_sample_with_dist gather_points grouping_operation knn
    min_area_polygons nms3d nms3d_normal nms_bev nms_normal_bev nms_quadri nms_rotated pixel_group
    points_in_boxes_all points_in_boxes_cpu points_in_boxes_part points_in_polygons prroi_pool
    riroi_align_rotated roi_align_rotated rotated_feature_align three_interpolate three_nn
    tin_shift voxelization
    """.split()  # noqa: SIM905
)


class MissingOpError(ImportError, NotImplementedError):
    """An op that has no compile-free version was imported or called."""

    def __init__(self, name):
        super().__init__(
            f"mmcv op {name!r} has no compile-free version in flatten_det; install a compiled mmcv"
            " over this one: `pip install --no-build-isolation --no-deps --no-cache-dir"
            " --force-reinstall onedl-mmcv` (needs a C++ compiler, and nvcc for CUDA tensors)",
            name=name,
        )


class PartialModule(ModuleType):
    """``mmcv.ops`` or a module in it, without the missing ops."""

    def __getattribute__(self, name):
        if name in MISSING and _mmcv_ops_has_loaded():
            raise MissingOpError(name)
        value = super().__getattribute__(name)
        return [n for n in value if n not in MISSING] if name == "__all__" else value

    def __dir__(self):
        return [name for name in super().__dir__() if name not in MISSING]


def hide_missing_ops():
    """Take the missing ops out of all modules of mmcv.ops that Python has begun to import."""
    for name, module in tuple(sys.modules.items()):
        if name == "mmcv.ops" or name.startswith("mmcv.ops."):
            module.__class__ = PartialModule


def _mmcv_ops_has_loaded():
    # It sets __all__ when it has imported everything.
    return "__all__" in vars(sys.modules.get("mmcv.ops", sys))
