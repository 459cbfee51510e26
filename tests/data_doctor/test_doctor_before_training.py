"""The quick check at the beginning of a training."""

import logging

import pytest
from mmengine.logging import MMLogger
from PIL import Image

from flatten_det.data_doctor import before_training
from flatten_det.data_doctor.before_training import check_before_training
from flatten_det.engine.errors import UserError


@pytest.fixture
def logger():
    return MMLogger("doctor")


@pytest.fixture
def warnings(logger):
    """What is logged as a warning."""
    lines = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    return lines


@pytest.mark.parametrize("task", ["instances", "panoptic", "semantic"])
def test_healthy_data_is_not_worth_a_word(patient, logger, warnings, task, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("opened an image"))
    check_before_training(patient.config(task), logger)
    assert warnings == []


def test_errors_end_it_with_one_line(patient, logger, warnings):
    with patient.annotations() as content:
        content["annotations"][1]["bbox"] = [90, 0, 5, 5]
        content["annotations"][2]["bbox"] = [90, 0, 5, 5]
    with pytest.raises(UserError) as caught:
        check_before_training(patient.config("instances"), logger)
    message = str(caught.value)
    assert message.startswith(
        f"the data has 2 errors, the first: {patient.path('annotations/instances_train.json')}: "
        "annotation 2 of image 0 has the box [90, 0, 5, 5], image 64x64 (box-outside: correct "
    )
    assert "uv run tools/check_data.py" in message
    assert message.endswith("--no-data-check")
    assert "\n" not in message
    assert warnings == []


def test_warnings_are_logged_once_per_kind(patient, logger, warnings):
    with patient.annotations() as content:
        for row in range(5):
            content["annotations"][row]["bbox"] = [5, 5, 0, 5]
        content["categories"].append({"id": 9, "name": "hexagon"})
    check_before_training(patient.config("instances"), logger)
    of_category, of_boxes = warnings
    assert "category 9 (hexagon) is no class of the config" in of_category
    assert of_boxes.startswith("data: boxes without area, or less than a pixel wide or high: 5 (")
    assert "annotation 3 of image 0" in of_boxes
    assert "annotation 4 of image 0" not in of_boxes
    assert "... and 2 more" in of_boxes


def test_other_ranks_are_told(patient, logger, monkeypatch):
    """They read nothing, and end with the same message."""

    def told(objects):
        objects[0] = "the data has 1 error"

    monkeypatch.setattr(before_training, "is_main_process", lambda: False)
    monkeypatch.setattr(before_training, "check_annotations", lambda cfg: pytest.fail("read it"))
    cfg = patient.config("instances")
    check_before_training(cfg, logger)
    monkeypatch.setattr(before_training, "broadcast_object_list", told)
    with pytest.raises(UserError, match="the data has 1 error"):
        check_before_training(cfg, logger)
