"""A tiny copy of Shapes for every test."""

from pathlib import Path

import pytest
from shapes_patient import Patient, render_shapes


@pytest.fixture(scope="session")
def healthy_shapes(tmp_path_factory) -> Path:
    """Shapes without a fault, to be read only."""
    return render_shapes(tmp_path_factory.mktemp("healthy") / "shapes")


@pytest.fixture
def patient(healthy_shapes, tmp_path) -> Patient:
    """Shapes to plant faults in."""
    return Patient(healthy_shapes, tmp_path / "shapes")
