"""Fixtures for the Shapes data set."""

import pytest

from flatten_det.datasets.shapes import files


@pytest.fixture(autouse=True)
def _release_folders():
    """Give up the folders that a test reserved, as the end of its process would."""
    yield
    while files._in_use:
        files._in_use.popitem()[1].close()
