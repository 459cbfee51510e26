"""Tiles cover an image and overlap as asked, and run lengths of a part are those of the whole image."""

from itertools import pairwise

import numpy as np
import pytest
from fuzzing import FEW, fuzz
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from flatten_det.predict.tiles import Tiling, Window, encode_in_image


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

    for shape in ((1000, 1700), (256, 257), (511, 100)):
        check(256, 0.2, *shape)
    sides = st.integers(1, 150)
    fuzz(check, FEW, st.integers(1, 80), st.floats(0, 0.95), sides, sides)


@st.composite
def _masks_in_images(draw) -> tuple[np.ndarray, int, int, int, int]:
    """A mask, its left and top, and the image's height and width."""
    height, width = draw(st.integers(1, 30)), draw(st.integers(1, 12))
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


def test_no_more_tiles_than_needed():
    assert len(Tiling(100, 0).windows(200, 300)) == 6
    assert len(Tiling(100, 0.5).windows(100, 200)) == 3
    assert Tiling(256).windows(256, 100) == [Window(0, 0, 100, 256)]


IMPOSSIBLE = [(0, 0.2), (-4, 0.2), (8, 1.0), (8, -0.1), (10, float("nan")), (10, 1.5)]


@pytest.mark.parametrize(("size", "overlap"), IMPOSSIBLE)
def test_impossible_tiles(size, overlap):
    with pytest.raises(ValueError, match="tile" if size < 1 else "tiles overlap"):
        Tiling(size, overlap)
