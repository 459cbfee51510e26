"""Run lengths of a part are those that pycocotools finds in the whole image."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from flatten_det.predict.tiles import encode_in_image


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_as_pycocotools(share):
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = (int(size) for size in rng.integers(1, 30, 2))
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = rng.integers(top, height) + 1, rng.integers(left, width) + 1
        mask = rng.random((bottom - top, right - left)) < share
        image = np.zeros((height, width), np.uint8, order="F")
        image[top:bottom, left:right] = mask
        found = encode_in_image(mask, int(left), int(top), height, width)
        assert found == coco_mask.encode(image)
