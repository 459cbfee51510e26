"""Bands of rows are what torch gives for the whole map."""

import pytest
import torch
import torch.nn.functional as F

from flatten_det.predict.segmentation import BandedMap, Cropped, Flipped, Resized, Stored


@pytest.fixture
def values():
    return torch.randn(3, 37, 53, generator=torch.Generator().manual_seed(0))


def assemble(banded: BandedMap, rows: int) -> torch.Tensor:
    bands = list(banded.bands(rows * banded.channels * banded.width))
    assert all(band.shape[1] == part.stop - part.start <= rows for part, band in bands)
    return torch.cat([band for _, band in bands], 1)


# Larger, smaller, both, one row, one column, the same height, the same width.
SIZES = [(148, 212), (13, 20), (100, 31), (1, 9), (9, 1), (37, 99), (99, 53)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rows", [1, 7, 500])
def test_resized(values, size, align_corners, rows):
    whole = F.interpolate(values[None], size, mode="bilinear", align_corners=align_corners)[0]
    banded = assemble(Resized(Stored(values), *size, align_corners), rows)
    torch.testing.assert_close(banded, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source_height", [1, 2, 333, 2048])
@pytest.mark.parametrize("align_corners", [False, True])
def test_rows_of_a_high_map_lie_where_torch_sees_them(source_height, align_corners):
    """Noise from row to row: an error in the position of a row is one in the values."""
    values = torch.randn(1, source_height, 8, generator=torch.Generator().manual_seed(0))
    whole = F.interpolate(values[None], (8191, 8), mode="bilinear", align_corners=align_corners)[0]
    banded = assemble(Resized(Stored(values), 8191, 8, align_corners), 1000)
    torch.testing.assert_close(banded, whole, rtol=0, atol=1e-5)


def test_cropped(values):
    banded = Cropped(Stored(values), left=2, right=3, top=5, bottom=7)
    assert (banded.height, banded.width) == (25, 48)
    assert torch.equal(assemble(banded, 4), values[:, 5:-7, 2:-3])


@pytest.mark.parametrize(("direction", "axis"), [("horizontal", 2), ("vertical", 1)])
def test_flipped(values, direction, axis):
    assert torch.equal(assemble(Flipped(Stored(values), direction), 4), values.flip(axis))


@pytest.mark.parametrize("align_corners", [False, True])
def test_all_in_a_row(values, align_corners):
    """Resized to an input, padding off, mirrored, resized to an image."""

    def resized(x, size):
        return F.interpolate(x[None], size, mode="bilinear", align_corners=align_corners)[0]

    whole = resized(values, (160, 224))[:, 3:-9, :-17].flip(1)
    whole = resized(whole, (301, 419))
    banded = Resized(Stored(values), 160, 224, align_corners)
    banded = Flipped(Cropped(banded, right=17, top=3, bottom=9), "vertical")
    banded = Resized(banded, 301, 419, align_corners)
    torch.testing.assert_close(assemble(banded, 10), whole, rtol=0, atol=1e-5)


class Counting(Stored):
    """Notes the largest number of rows it was asked for."""

    most = 0

    def rows(self, top, bottom):
        self.most = max(self.most, bottom - top)
        return super().rows(top, bottom)


def test_no_more_rows_of_the_source_than_needed(values):
    source = Counting(values)
    assemble(Resized(source, 370, 53, False), 20)
    assert source.most <= 4
