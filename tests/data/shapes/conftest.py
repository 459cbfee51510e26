"""Fixtures for the Shapes data set."""

from collections.abc import Callable, Iterator

import pytest

from flatten_det.data.shapes import files


def _release_folders() -> None:
    while files._in_use:
        files._in_use.popitem()[1].close()


@pytest.fixture(autouse=True)
def release_folders() -> Iterator[Callable[[], None]]:
    """Gives up the folders that this process reserved, as its end would; so does every test."""
    yield _release_folders
    _release_folders()
