"""Broken images are named; everything else is left alone."""

import cv2
import numpy as np
import pytest
from mmengine.dataset import Compose
from PIL import Image

from flatten_det.engine.images import CheckedPipeline, ImageError, image_error


@pytest.fixture(params=[".jpg", ".png"])
def picture(request, tmp_path):
    path = tmp_path / f"picture{request.param}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    return path


def test_good_image_has_no_error(picture):
    assert image_error(picture) is None


def test_image_beyond_the_limit_is_not_decoded(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("decoded"))
    assert "was not decoded: Image size (2400 pixels) exceeds" in image_error(picture)


def test_label_map_has_no_error(tmp_path):
    path = tmp_path / "labels.png"
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    assert image_error(path) is None


@pytest.mark.parametrize("size", [0, 10, 200, -30])
def test_cut_image_is_named(picture, size):
    content = picture.read_bytes()[:size]
    picture.write_bytes(content)
    assert image_error(picture).startswith(
        f"image {picture} cannot be decoded ({len(content)} bytes)"
    )


def test_missing_image_is_named(tmp_path):
    assert image_error(tmp_path / "a.jpg") == (
        f"image {tmp_path / 'a.jpg'} not found: check the data folder"
    )


def fail(data):
    raise RuntimeError("a bug")


def test_pipeline_blames_a_broken_image(picture):
    picture.write_bytes(b"x")
    with pytest.raises(ImageError, match=r"picture\.\w+ cannot be decoded"):
        CheckedPipeline([fail])({"img_path": str(picture)})


def test_pipeline_blames_a_broken_label_map(picture, tmp_path):
    with pytest.raises(ImageError, match=r"labels\.png not found"):
        CheckedPipeline([fail])(
            {"img_path": str(picture), "seg_map_path": str(tmp_path / "labels.png")}
        )


def test_pipeline_leaves_other_errors_alone(picture):
    with pytest.raises(RuntimeError, match="a bug"):
        CheckedPipeline([fail])({"img_path": str(picture)})
    with pytest.raises(RuntimeError, match="a bug"):
        CheckedPipeline([fail])({"img_path": "s3://bucket/a.jpg"})


def test_pipeline_gives_what_the_plain_one_gives():
    def double(data):
        return {**data, "x": data["x"] * 2}

    assert CheckedPipeline([double, double])({"x": 1}) == Compose([double, double])({"x": 1})
