"""Bands of rows are what torch gives for the whole map."""

import pytest
import torch
import torch.nn.functional as F

from flatten_det.predict.segmentation import BandedMap, cropped, flipped, resized, stored


def noise(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def values():
    return noise(3, 37, 53)


def assemble(banded: BandedMap, rows: int) -> torch.Tensor:
    bands = list(banded.bands(rows * banded.channels * banded.width))
    assert all(band.shape[1] == part.stop - part.start <= rows for part, band in bands)
    return torch.cat([band for _, band in bands], 1)


def interpolated(values: torch.Tensor, size: tuple, align_corners: bool) -> torch.Tensor:
    return F.interpolate(values[None], size, mode="bilinear", align_corners=align_corners)[0]


def check_resized(values, size, align_corners, rows):
    banded = assemble(resized(stored(values), *size, align_corners), rows)
    torch.testing.assert_close(banded, interpolated(values, size, align_corners), rtol=0, atol=1e-5)


# Larger, smaller, both, one row, one column, the same height, the same width.
SIZES = [(148, 212), (13, 20), (100, 31), (1, 9), (9, 1), (37, 99), (99, 53)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 7, 500])
def test_resized(values, size, align_corners, rows):
    check_resized(values, size, align_corners, rows)


@pytest.mark.parametrize("source_height", [1, 2, 333, 2048])
@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_of_a_high_map_lie_where_torch_sees_them(source_height, align_corners):
    """Noise from row to row: an error in the position of a row is one in the values."""
    check_resized(noise(1, source_height, 8), (8191, 8), align_corners, 1000)


def test_cropped(values):
    banded = cropped(stored(values), left=2, right=3, top=5, bottom=7)
    assert (banded.height, banded.width) == (25, 48)
    assert torch.equal(assemble(banded, 4), values[:, 5:-7, 2:-3])


@pytest.mark.parametrize(("direction", "axis"), [("horizontal", 2), ("vertical", 1)])
def test_flipped(values, direction, axis):
    assert torch.equal(assemble(flipped(stored(values), direction), 4), values.flip(axis))


@pytest.mark.parametrize("align_corners", [False, True])
def test_all_in_a_row(values, align_corners):
    """Resized to an input, padding off, mirrored, resized to an image."""
    whole = interpolated(values, (160, 224), align_corners)[:, 3:-9, :-17].flip(1)
    whole = interpolated(whole, (301, 419), align_corners)
    banded = resized(stored(values), 160, 224, align_corners)
    banded = flipped(cropped(banded, right=17, top=3, bottom=9), "vertical")
    banded = resized(banded, 301, 419, align_corners)
    torch.testing.assert_close(assemble(banded, 10), whole, rtol=0, atol=1e-5)


def test_no_more_rows_of_the_source_than_needed(values):
    asked = []

    def rows(top: int, bottom: int) -> torch.Tensor:
        asked.append(bottom - top)
        return values[:, top:bottom]

    assemble(resized(BandedMap(*values.shape, rows), 370, 53, False), 20)
    assert max(asked) <= 4
