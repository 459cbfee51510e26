"""What holds for instances, panoptic and semantic data alike."""

import shutil

import pytest
from PIL import Image
from shapes_patient import only, save_turned

from flatten_det.data.doctor import faults


@pytest.mark.parametrize("task", ["instances", "panoptic", "semantic"])
def test_nothing_is_wrong_with_the_healthy(patient, task):
    assert patient.findings(task) == patient.quick_findings(task) == []


@pytest.mark.parametrize(("task", "name"), [("instances", "images"), ("semantic", "semantic")])
def test_missing_folder_is_one_finding(patient, task, name):
    folder = patient.path(f"train/{name}")
    shutil.rmtree(folder)
    for found in (patient.findings(task), patient.quick_findings(task)):
        assert only(found, faults.FOLDER_MISSING).file == str(folder)


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_label_map_that_asks_to_be_turned(patient, task, orientation):
    """Trainings and evaluations differ in whether they obey."""
    path = patient.path(f"train/{task}/000002.png")
    save_turned(Image.open(path), path, orientation)
    finding = only(patient.findings(task), faults.LABEL_MAP_FORMAT)
    assert "asks to be turned (EXIF orientation)" in finding.message


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_broken_label_map(patient, task, monkeypatch):
    path = patient.path(f"train/{task}/000002.png")
    content = path.read_bytes()
    for size in (0, 100):
        path.write_bytes(content[:size])
        finding = only(patient.findings(task), faults.LABEL_MAP_UNREADABLE)
        assert finding.file == str(path)
    path.write_bytes(content)
    Image.open(path).resize((640, 640)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    only(patient.findings(task), faults.LABEL_MAP_TOO_LARGE)
