"""The tools that fuzzing calls."""

from types import ModuleType

import pytest
from tool_modules import load_tool


@pytest.fixture(scope="session")
def check_data_tool() -> ModuleType:
    return load_tool("check_data")


@pytest.fixture(scope="session")
def prepare_tool() -> ModuleType:
    return load_tool("prepare_data")


@pytest.fixture(scope="session")
def infer_tool() -> ModuleType:
    return load_tool("infer")


@pytest.fixture(scope="session")
def train_tool() -> ModuleType:
    return load_tool("train")


@pytest.fixture(scope="session")
def convert_tool() -> ModuleType:
    return load_tool("convert_checkpoint")
