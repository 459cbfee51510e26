"""What holds for tiles and run lengths of every size."""

from itertools import pairwise

import numpy as np
import pytest
from fuzzing import FEW, fuzz
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from flatten_det.predict.tiles import Tiling, encode_in_image


def test_tiles_cover_every_pixel_overlap_as_asked_and_differ():
    def check(size: int, overlap: float, height: int, width: int) -> None:
        windows = Tiling(size, overlap).windows(height, width)
        covered = np.zeros((height, width), int)
        for left, top, right, bottom in windows:
            assert 0 <= left < right <= width
            assert 0 <= top < bottom <= height
            assert (right - left, bottom - top) == (min(size, width), min(size, height))
            covered[top:bottom, left:right] += 1
        assert covered.min() >= 1
        assert len(set(windows)) == len(windows)
        columns = sorted({(window.left, window.right) for window in windows})
        # A stride is a pixel at least, whatever the overlap.
        asked = min(size * overlap, size - 1)
        assert all(one[1] - other[0] >= asked - 1e-9 for one, other in pairwise(columns))

    sides = st.integers(1, 150)
    fuzz(check, FEW, st.integers(1, 80), st.floats(0, 0.95), sides, sides)


@st.composite
def _masks_in_images(draw) -> tuple[np.ndarray, int, int, int, int]:
    """A mask, its left and top, and the image's height and width."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    shape = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    count = shape[0] * shape[1]
    bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return np.reshape(bits, shape), left, top, height, width


def test_run_lengths_come_back_as_the_mask():
    def check(case: tuple[np.ndarray, int, int, int, int]) -> None:
        mask, left, top, height, width = case
        image = np.zeros((height, width), np.uint8, order="F")
        image[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        found = encode_in_image(mask, left, top, height, width)
        np.testing.assert_array_equal(coco_mask.decode(found), image)
        assert found == coco_mask.encode(image)

    fuzz(check, FEW, _masks_in_images())


@pytest.mark.parametrize("overlap", [float("nan"), 1.5])
def test_no_tiles_of_impossible_overlap(overlap):
    with pytest.raises(ValueError, match="overlap"):
        Tiling(10, overlap)
