"""Tiles cover the image and overlap as asked."""

from itertools import pairwise

import numpy as np
import pytest

from flatten_det.predict.tiles import Tiling, Window


@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 1700), (256, 257), (511, 100)])
def test_cover(shape, overlap):
    windows = Tiling(256, overlap).windows(*shape)
    covered = np.zeros(shape, int)
    for window in windows:
        assert window.right - window.left == min(256, shape[1])
        assert window.bottom - window.top == min(256, shape[0])
        covered[window.top : window.bottom, window.left : window.right] += 1
    assert covered.min() >= 1
    assert len(set(windows)) == len(windows)


@pytest.mark.parametrize("overlap", [0, 0.2, 0.5])
@pytest.mark.parametrize("length", [257, 300, 1000, 4099])
def test_overlap(length, overlap):
    tiles = Tiling(256, overlap).windows(10, length)
    assert all(one.right - other.left >= overlap * 256 for one, other in pairwise(tiles))


def test_no_more_tiles_than_needed():
    assert len(Tiling(100, 0).windows(200, 300)) == 6
    assert len(Tiling(100, 0.5).windows(100, 200)) == 3


def test_image_of_one_tile():
    assert Tiling(256).windows(256, 100) == [Window(0, 0, 100, 256)]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0.2), (-4, 0.2), (8, 1.0), (8, -0.1)])
def test_impossible_tiles(size, overlap):
    with pytest.raises(ValueError, match="tile"):
        Tiling(size, overlap)
