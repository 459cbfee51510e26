"""COCO files in which something is wrong, through the data doctor and prepare_data.py custom.

What the doctor finds no error in must go through a training's data set: that is its promise.
"""

import contextlib
import io
import json
from pathlib import Path

import pytest
from custom_folder import make_custom_split, write_json
from fuzzing import (
    empty_folder,
    ending,
    files_in,
    fuzz,
    json_files,
    numbers_of_cases,
    numbers_of_slow_cases,
)
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from shapes_patient import Patient

from flatten_det.cli import run_tool
from flatten_det.config import load_config
from flatten_det.data.doctor.check import check_before_training

QUICKSTART = (
    Path(__file__).parents[2] / "configs/quickstart/mask-rcnn_flatten-pvt-nano_fpn_shapes.py"
)


@pytest.fixture(scope="module")
def shapes(healthy_shapes, tmp_path_factory) -> Patient:
    return Patient(healthy_shapes, tmp_path_factory.mktemp("patient") / "shapes")


@numbers_of_cases
@pytest.mark.parametrize("task", ["instances", "panoptic"])
def test_data_doctor(shapes, check_data_tool, tmp_path, task, num_cases):
    config = tmp_path / "config.json"
    shapes.config(task).dump(config)
    file = shapes.path(f"annotations/{task}_train.json")
    healthy = file.read_bytes()
    report = tmp_path / "out" / "report.json"

    def check(content: bytes) -> None:
        empty_folder(report.parent)
        file.write_bytes(content)
        end = ending(check_data_tool.main, config, "--workers", 0, "--json", report)
        end.check(file, good=(0, 1))
        assert json.loads(report.read_text())["errors"] == 0 or end.code == 1
        cfg = load_config(config)
        logger = MMLogger.get_instance("fuzz", log_level="CRITICAL")
        quick = ending(lambda argv: run_tool(lambda: check_before_training(cfg, logger)))
        quick.check(file)
        assert quick.code == 0 or end.code == 1
        if end.code == 0:
            _load_all(cfg.train_dataloader.dataset)

    try:
        fuzz(check, num_cases, json_files(json.loads(healthy)))
    finally:
        file.write_bytes(healthy)


def _load_all(options: dict) -> None:
    """As a training does."""
    kind = "Annotations" if options["type"] == "CocoDataset" else "PanopticAnnotations"
    annotations = dict(type=f"Load{kind}", with_bbox=True, with_mask=True)
    pipeline = [dict(type="LoadImageFromFile"), annotations, dict(type="PackDetInputs")]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = DATASETS.build({**options, "pipeline": pipeline})
    for index in range(len(dataset)):
        assert dataset[index] is not None


@numbers_of_slow_cases
def test_custom_config(prepare_tool, tmp_path, num_cases):
    base = tmp_path / "base.py"
    load_config(QUICKSTART).dump(base)
    folder, out = tmp_path / "fruit", tmp_path / "out"
    contents = {split: make_custom_split(folder / split, 3) for split in ("train", "valid")}
    for split, content in contents.items():
        write_json(folder / split / "_annotations.coco.json", content)
    file = folder / "train" / "_annotations.coco.json"

    def check(content: bytes) -> None:
        empty_folder(out)
        file.write_bytes(content)
        config = out / "fruit.py"
        end = ending(prepare_tool.main, "custom", folder, "--config", base, "--out", config)
        end.check(folder)
        if end.code:
            assert files_in(out) == []
            return
        assert set(files_in(out)) <= {"fruit.py", "fruit_train.json", "fruit_val.json"}
        with contextlib.redirect_stdout(io.StringIO()):
            init_default_scope("mmdet")
            dataset = DATASETS.build(load_config(config).train_dataloader.dataset)
        assert dataset.metainfo["classes"]

    fuzz(check, num_cases, json_files(contents["train"]))
