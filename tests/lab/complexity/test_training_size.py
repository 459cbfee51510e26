"""The image size that a config is about."""

import pytest
from mmengine.config import Config

from flatten_det.errors import UserError
from flatten_det.lab.complexity.target import training_size

RESIZE = {"dataset": {"pipeline": [{"type": "Load"}, {"type": "Resize", "scale": (1333, 800)}]}}
SHAPES = {"dataset": {"image_size": ((96, 96), (128, 192)), "object_size": (8, 96)}}


@pytest.mark.parametrize(
    ("preprocessor", "test", "size"),
    [
        ({}, RESIZE, (800, 1280)),
        ({"size": (512, 1024)}, RESIZE, (512, 1024)),
        ({}, SHAPES, (128, 192)),
        ({"batch_augments": [{"type": "Fixed", "size": (640, 640)}]}, RESIZE, (640, 640)),
    ],
)
def test_training_size(preprocessor, test, size):
    cfg = Config(dict(model=dict(data_preprocessor=preprocessor), test_dataloader=test))
    assert training_size(cfg) == size


@pytest.mark.parametrize(
    "cfg",
    [
        dict(model=dict(type="A")),
        dict(model={}, test_dataloader={"dataset": {"pipeline": [{"type": "Resize", "size": 3}]}}),
    ],
)
def test_config_that_does_not_say_is_one_error(cfg):
    with pytest.raises(UserError, match="no image size") as caught:
        training_size(Config(cfg))
    assert "\n" not in str(caught.value)
