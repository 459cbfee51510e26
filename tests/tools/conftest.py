"""The tools as modules, and one tiny training of each kind for all tests to build on."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from fixtures import write_detector_config, write_segmentor_config
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from tool_modules import tool_fixture

from flatten_det.config import load_config


class Trained(NamedTuple):
    """A finished training."""

    config: Path
    checkpoint: Path
    metrics: dict[str, float]


train_tool = tool_fixture("train")
test_tool = tool_fixture("test")
infer_tool = tool_fixture("infer")
convert_tool = tool_fixture("convert_checkpoint")
update_zoo_tool = tool_fixture("update_zoo")
get_flops_tool = tool_fixture("get_flops")
benchmark_tool = tool_fixture("benchmark")
check_data_tool = tool_fixture("check_data")
prepare_tool = tool_fixture("prepare_data")


@pytest.fixture
def run_infer(infer_tool, tmp_path) -> Callable[..., int]:
    """``run_infer(config, *arguments)`` predicts into the folder ``out``; returns the exit code."""
    options = ["--out-dir", str(tmp_path / "out"), "--device", "cpu"]
    return lambda config, *arguments: infer_tool.main([str(config), *options, *map(str, arguments)])


@pytest.fixture
def told(tmp_path) -> Callable[[str], dict]:
    """``told(name)``: what ``run_infer`` has written of an image as JSON."""
    return lambda name: json.loads((tmp_path / "out" / "preds" / f"{name}.json").read_text())


def _train(tool: ModuleType, config: Path, *options: str) -> Trained:
    work_dir = config.with_suffix("")
    assert tool.main([str(config), "--work-dir", str(work_dir), *options]) == 0
    (scalars,) = work_dir.glob("*/vis_data/scalars.json")
    metrics = json.loads(scalars.read_text().splitlines()[-1])
    return Trained(config, Path((work_dir / "last_checkpoint").read_text()), metrics)


@pytest.fixture(scope="session")
def trained_detector(train_tool, coco_folder, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("detector")
    return _train(train_tool, write_detector_config(folder / "tiny-mask-rcnn.py", coco_folder))


@pytest.fixture(scope="session")
def trained_segmentor(train_tool, ade20k_folder, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("segmentor")
    config = write_segmentor_config(folder / "tiny-fpn.py", ade20k_folder)
    return _train(train_tool, config, "--amp")


@pytest.fixture(scope="session")
def one_channel(trained_segmentor, tmp_path_factory) -> Trained:
    """A segmentor of two classes whose one map is the probability of the second, with random weights."""
    folder = tmp_path_factory.mktemp("one_channel")
    config, checkpoint = folder / "one-channel.py", folder / "random.pth"
    config.write_text(
        f"_base_ = {str(trained_segmentor.config)!r}\n"
        "model = dict(decode_head=dict(num_classes=2, out_channels=1, threshold=0.5,"
        " loss_decode=dict(use_sigmoid=True)))\n"
        "test_dataloader = dict(dataset=dict(metainfo=dict(classes=('wall', 'building'))))\n"
        "tta_model = tta_pipeline = None\n"
    )
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(load_config(config).model)
    last = model.decode_head.conv_seg
    torch.nn.init.normal_(last.weight)
    with torch.no_grad():
        last.bias -= model.eval()(torch.randn(1, 3, 64, 96), mode="tensor").median()
    torch.save({"state_dict": model.state_dict()}, checkpoint)
    return Trained(config, checkpoint, {})


@pytest.fixture
def random_segmentor(ade20k_folder, tmp_path) -> Trained:
    """With a backbone of ours, which has learned nothing."""
    config = write_segmentor_config(tmp_path / "tiny-flatten.py", ade20k_folder)
    arch = dict(embed_dims=(8, 16, 32, 64), num_heads=(1, 1, 2, 4), depths=(1, 1, 1, 1))
    backbone = f"dict(_delete_=True, type='FLattenPVT', arch={arch})"
    config.write_text(f"{config.read_text()}\nmodel['backbone'] = {backbone}\n")
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope("mmseg"):
        state = MODELS.build(cfg.model).state_dict()
    torch.save({"state_dict": state}, tmp_path / "random.pth")
    return Trained(config, tmp_path / "random.pth", {})
