"""Configs with wrong values, through what tools/train.py does until the first iteration."""

from pathlib import Path

import pytest
from fuzzing import changed, empty_folder, ending, fuzz, numbers_of_slow_cases
from hypothesis import strategies as st
from mmengine.runner import IterBasedTrainLoop
from shapes_patient import render_shapes

from flatten_det.config import load_config

QUICKSTART = (
    Path(__file__).parents[2] / "configs/quickstart/retinanet_flatten-pvt-nano_fpn_shapes.py"
)
_MUTATED = ("model", "optim_wrapper", "param_scheduler", "train_cfg", "default_hooks")
_MUTATED += ("train_dataloader", "val_dataloader", "val_evaluator", "randomness", "visualizer")


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> dict:
    """The content of a quickstart's config, on images that are rendered already."""
    data = render_shapes(tmp_path_factory.mktemp("data") / "shapes")
    content = load_config(QUICKSTART).to_dict()
    for split, file in (("train", "instances_train.json"), ("val", "instances_val.json")):
        dataset = content[f"{split}_dataloader"]["dataset"]
        content[f"{split}_dataloader"]["dataset"] = dict(
            type="CocoDataset",
            data_root=str(data),
            ann_file=f"annotations/{file}",
            data_prefix=dict(img=f"{split}/images"),
            metainfo=dict(classes=("circle", "ring", "triangle", "square", "star", "cross")),
            pipeline=dataset["pipeline"],
        )
    # Much narrower: the model is built for every case.
    model = content["model"]
    model["backbone"]["arch"].update(embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2))
    model["neck"].update(in_channels=[8, 16, 16, 16], out_channels=16)
    model["bbox_head"].update(in_channels=16, feat_channels=16)
    content["test_dataloader"] = content["val_dataloader"]
    content["val_evaluator"]["ann_file"] = str(data / "annotations/instances_val.json")
    content["test_evaluator"] = content["val_evaluator"]
    return content


@pytest.fixture
def built_only(monkeypatch) -> None:
    """A training ends where its first iteration would begin."""

    def begin(loop: IterBasedTrainLoop) -> None:
        loop.runner.call_hook("before_train")

    monkeypatch.setattr(IterBasedTrainLoop, "run", begin)


@numbers_of_slow_cases
def test_values(quickstart, built_only, train_tool, tmp_path, num_cases):
    config, work_dir = tmp_path / "config.py", tmp_path / "run"

    def check(section: str, values: object) -> None:
        empty_folder(work_dir)
        content = {**quickstart, section: values}
        if values == "missing":
            del content[section]
        lines = [f"{key} = {value!r}\n" for key, value in content.items()]
        config.write_text("".join(["from math import inf, nan\n", *lines]))
        ending(train_tool.main, config, "--work-dir", work_dir).check(config, "the config ")

    check("randomness", quickstart["randomness"])
    for section in _MUTATED:
        check(section, "missing")
    sections = st.sampled_from(_MUTATED)
    cases = sections.flatmap(lambda key: st.tuples(st.just(key), changed(quickstart[key], 2)))
    fuzz(lambda case: check(*case), num_cases, cases)
