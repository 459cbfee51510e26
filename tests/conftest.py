"""Fixtures for the whole suite. Data folders are shared: copy one before changing it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import make_ade20k_folder, make_cityscapes_folder, make_coco_folder
from golden_values import Golden, load_golden
from panoptic_fixture import add_panoptic_annotations


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """``golden('pvt_tiny_224')``: the record of that name."""
    return load_golden


@pytest.fixture(scope="session")
def coco_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in COCO's layout, to be read only."""
    folder = make_coco_folder(tmp_path_factory.mktemp("data") / "coco")
    return add_panoptic_annotations(folder)


@pytest.fixture(scope="session")
def ade20k_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in ADE20K's layout, to be read only."""
    return make_ade20k_folder(tmp_path_factory.mktemp("data") / "ADEChallengeData2016")


@pytest.fixture(scope="session")
def cityscapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in Cityscapes' layout, to be read only."""
    return make_cityscapes_folder(tmp_path_factory.mktemp("data") / "cityscapes")
