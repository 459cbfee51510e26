"""A small checkout to change."""

import shutil
from pathlib import Path

import pytest
from zoo_fixture import make_small_zoo


@pytest.fixture(scope="session")
def small_zoo(tmp_path_factory) -> Path:
    """To be read only."""
    return make_small_zoo(tmp_path_factory.mktemp("zoo") / "checkout")


@pytest.fixture
def checkout(small_zoo, tmp_path) -> Path:
    return shutil.copytree(small_zoo, tmp_path / "checkout")
