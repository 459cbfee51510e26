"""Broken images are named; everything else is left alone."""

import json
import os
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from bombs import huge_files
from mmdet.evaluation import CocoPanopticMetric
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.evaluator import Evaluator

from flatten_det.data.loading import CheckedPipeline, CheckFilesHook, ImageError, image_error


@pytest.fixture(params=[".jpg", ".png"])
def picture(request, tmp_path):
    path = tmp_path / f"picture{request.param}"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    return path


def test_good_images_and_label_maps_have_no_error(picture, tmp_path):
    assert image_error(picture) is None
    path = tmp_path / "labels.png"
    cv2.imwrite(str(path), np.zeros((4, 4), np.uint8))
    assert image_error(path) is None


@pytest.mark.parametrize("size", [0, 10, 200, -30])
def test_cut_image_is_named(picture, size):
    content = picture.read_bytes()[:size]
    picture.write_bytes(content)
    said = f"image {picture} cannot be decoded ({len(content)} bytes)"
    assert image_error(picture).startswith(said)
    with pytest.raises(ImageError, match=re.escape(said)):
        CheckedPipeline([fail])({"img_path": str(picture)})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a", "check the data folder"),
        ("", "remove the blank line from the list of images"),
        (
            "\ufeffa",
            "the list of images begins with a byte order mark: save it as UTF-8 without one",
        ),
        ("sub\\a", "write / instead of \\ in the annotations"),
    ],
)
def test_why_an_image_is_missing(tmp_path, line, said):
    """As MMSegmentation makes a path of a line, and MMDetection of a file name."""
    path = os.path.join(tmp_path, f"{line}.jpg")
    assert image_error(path) == f"image {path} not found: {said}"
    with pytest.raises(ImageError, match=f"not found: {re.escape(said)}"):
        CheckedPipeline([fail])({"img_path": path})


def fail(data):
    raise RuntimeError("a bug")


def test_pipeline_blames_a_broken_label_map_and_leaves_other_errors_alone(picture, tmp_path):
    pipeline, sample = CheckedPipeline([fail]), {"img_path": str(picture)}
    with pytest.raises(ImageError, match=r"labels\.png not found"):
        pipeline({**sample, "seg_map_path": str(tmp_path / "labels.png")})
    for good in (sample, {"img_path": "s3://bucket/a.jpg"}):
        with pytest.raises(RuntimeError, match="a bug"):
            pipeline(good)


def test_pipeline_gives_what_the_plain_one_gives():
    def double(data):
        return {**data, "x": data["x"] * 2}

    assert CheckedPipeline([double, double])({"x": 1}) == Compose([double, double])({"x": 1})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bomb.png", "cannot be told beforehand"),
        ("pipe.png", "is a named pipe"),
        ("../secret.png", "outside of its data folder"),
    ],
)
def test_label_maps_that_a_panoptic_metric_opens(tmp_path, name, said):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / "bomb.png").write_bytes(huge_files(20_000, 20_000)["pam"])
    os.mkfifo(folder / "pipe.png")
    annotation = {"id": 1, "image_id": 1, "file_name": name, "segments_info": []}
    image = {"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}
    content = {"images": [image], "annotations": [annotation], "categories": []}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    metric = CocoPanopticMetric(str(tmp_path / "panoptic.json"), str(folder))
    runner = SimpleNamespace(cfg=Config(), test_evaluator=Evaluator([metric]))
    with pytest.raises(ImageError, match=said):
        CheckFilesHook().before_test(runner)
