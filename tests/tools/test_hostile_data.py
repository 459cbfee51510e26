"""The tools on data that is meant to do harm: one message, and no file outside is touched."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from bombs import png_bomb
from fixtures import write_detector_config
from mmengine.config import Config
from tool_modules import one_line_error

from flatten_det.data.loading import blame_annotation_files
from flatten_det.errors import UserError


@pytest.fixture
def folder(coco_folder, tmp_path) -> Path:
    return shutil.copytree(coco_folder, tmp_path / "coco")


@pytest.fixture
def config(folder, tmp_path) -> str:
    return str(write_detector_config(tmp_path / "tiny.py", folder))


def first_image_is(folder: Path, split: str, name: str) -> None:
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_bytes())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))


def test_bomb_to_predict(run_infer, config, folder, tmp_path, capsys):
    good = next((folder / "val2017").iterdir())
    bomb = png_bomb(tmp_path / "bomb.png")
    assert run_infer(config, bomb, good) == 2
    error = one_line_error(capsys)
    assert f"1 of 2 images: image {bomb} was not decoded: Image size (10000000000 pixels)" in error
    assert "--cfg-options max_image_pixels=" in error
    assert len(list((tmp_path / "out" / "preds").rglob("*.json"))) == 1


def test_bomb_to_train_on(train_tool, config, folder, tmp_path, capsys):
    for path in (folder / "train2017").iterdir():
        png_bomb(path, kilobytes=1)
    command = [config, "--work-dir", str(tmp_path / "run"), "--cfg-options"]
    assert train_tool.main([*command, "default_hooks.visualization.draw=False"]) == 2
    assert "was not decoded: Image size (10000000000 pixels)" in one_line_error(capsys)


def test_bomb_for_the_data_doctor(check_data_tool, config, folder, capsys):
    image = next((folder / "train2017").iterdir())
    png_bomb(image)
    assert check_data_tool.main([config, "--workers", "2"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "exceeds limit of 178956970 pixels" in out
    assert "raise max_image_pixels in the config" in out


def test_names_that_leave_the_folder(
    train_tool, test_tool, config, folder, trained_detector, tmp_path, capsys
):
    cv2.imwrite(str(folder / "secret.jpg"), np.zeros((61, 97, 3), np.uint8))
    shutil.copy(folder / "secret.jpg", tmp_path)
    first_image_is(folder, "train2017", "../secret.jpg")
    first_image_is(folder, "val2017", f"{tmp_path}/secret.jpg")
    command = [config, "--work-dir", str(tmp_path / "run")]
    assert train_tool.main(command) == 2
    assert "leave" in one_line_error(capsys)
    assert train_tool.main([*command, "--no-data-check"]) == 2
    assert "outside of its data folder" in one_line_error(capsys)
    pictures = tmp_path / "deep" / "pictures"
    test = [config, str(trained_detector.checkpoint), "--show-dir", str(pictures), *command[1:]]
    assert test_tool.main(test) == 2
    assert "outside of its data folder" in one_line_error(capsys)
    assert not list(tmp_path.glob("deep/*.jpg"))


@pytest.mark.parametrize("depth", [100_000])
def test_json_that_is_very_deep(train_tool, config, folder, depth, tmp_path, capsys):
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text("[" * depth + "]" * depth)
    command = [config, "--work-dir", str(tmp_path / "run")]
    assert train_tool.main(command) == 2
    assert "is not valid JSON" in one_line_error(capsys)
    assert train_tool.main([*command, "--no-data-check"]) == 2
    assert f"annotation file {path} is not valid JSON" in one_line_error(capsys)


def test_depth_is_told_with_its_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 100_000)
    with (
        pytest.raises(UserError, match=rf"annotation file {path} is not valid JSON"),
        blame_annotation_files(Config(dict(ann_file=str(path)))),
    ):
        json.loads(path.read_text())
