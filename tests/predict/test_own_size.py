"""Images keep their size, and detectors their factor."""

import numpy as np
import pytest
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope

from flatten_det.predict.engine import RESIZES, without_resizing

ARGUMENTS = {
    "Resize": {"scale": (64, 64), "keep_ratio": True},
    "FixScaleResize": {"scale": (64, 64), "keep_ratio": True},
    "FixShapeResize": {"width": 64, "height": 64},
    "ResizeShortestEdge": {"scale": 64, "max_size": 100},
}


@pytest.mark.parametrize("scope", ["", "mmdet."])
@pytest.mark.parametrize("kind", RESIZES)
def test_size_and_factor(kind, scope):
    init_default_scope("mmdet")
    step = {"type": scope + kind, **ARGUMENTS[kind]}
    image = np.random.default_rng(0).integers(0, 255, (101, 77, 3), np.uint8)
    assert Compose([step])({"img": image.copy()})["img"].shape != image.shape
    result = Compose(without_resizing([step]))({"img": image.copy()})
    np.testing.assert_array_equal(result["img"], image)
    assert result["scale_factor"] == (1, 1)
    assert result["img_shape"] == (101, 77)


def test_other_steps_stay():
    steps = [{"type": "LoadImageFromFile"}, {"type": "RandomFlip", "prob": 0.0}]
    assert without_resizing(steps) == steps
