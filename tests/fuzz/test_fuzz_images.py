"""Image files of every kind, whole and damaged, through the data doctor, a training and infer.py."""

import json

import cv2
import mmcv
import pytest
from fixtures import write_detector_config, write_segmentor_config
from fuzzing import empty_folder, ending, files_in, fuzz, numbers_of_cases, numbers_of_slow_cases
from image_cases import image_files
from mmengine.registry import init_default_scope
from shapes_patient import Patient

import flatten_det.predict.infer as infer_module
from flatten_det.cli import run_tool
from flatten_det.config import load_config
from flatten_det.data.loading import CheckedPipeline
from flatten_det.predict.predictor import Predictor

LOAD = [dict(type="LoadImageFromFile"), dict(type="PackDetInputs", meta_keys=("img_shape",))]


@pytest.fixture
def shapes(patient) -> Patient:
    """One training image, with its annotation."""
    for split in ("train", "val"):
        with patient.annotations(split=split) as content:
            content["images"] = content["images"][:1]
            first = content["images"][0]["id"]
            content["annotations"] = [a for a in content["annotations"] if a["image_id"] == first]
    return patient


@numbers_of_cases
def test_data_doctor_and_training(shapes, check_data_tool, tmp_path, num_cases):
    config = tmp_path / "config.json"
    shapes.config("instances").dump(config)
    image = shapes.path("train/images/000000.jpg")
    assert image.is_file()
    report = tmp_path / "out" / "report.json"
    init_default_scope("mmdet")
    load = CheckedPipeline(LOAD)

    def check(content: bytes) -> None:
        empty_folder(report.parent)
        image.write_bytes(content)
        end = ending(check_data_tool.main, config, "--workers", 0, "--json", report)
        end.check(image, good=(0, 1))
        faults = [f for f in json.loads(report.read_text())["findings"] if f["file"] == str(image)]
        assert len(faults) <= 1
        sizes: list[tuple[int, int]] = []

        def read() -> None:
            sizes.append(load({"img_path": str(image)})["data_samples"].img_shape)

        ending(lambda argv: run_tool(read)).check(image)
        assert faults or sizes == [(64, 64)]

    fuzz(check, num_cases, image_files())


@numbers_of_slow_cases
@pytest.mark.parametrize("write_config", [write_detector_config, write_segmentor_config])
def test_infer(infer_tool, tmp_path, monkeypatch, write_config, num_cases):
    # A folder and a model are the same for all images: they are made once.
    config = tmp_path / "config.py"
    load_config(write_config(tmp_path / "written.py", tmp_path)).dump(config)
    predictor = Predictor(load_config(config), None, "cpu")
    monkeypatch.setattr(infer_module, "Predictor", lambda *arguments, **options: predictor)
    image, out = tmp_path / "image.jpg", tmp_path / "out"

    def check(content: bytes) -> None:
        empty_folder(out)
        image.write_bytes(content)
        end = ending(infer_tool.main, config, image, "--device", "cpu", "--out-dir", out)
        end.check(image)
        if end.code:
            assert files_in(out) == []
            return
        size = json.loads((out / "preds" / "image.json").read_text())
        assert cv2.imread(str(out / "vis" / "image.jpg")) is not None
        assert (size["height"], size["width"]) == mmcv.imfrombytes(content).shape[:2]

    fuzz(check, num_cases, image_files())
