"""Whether data or model limit a training, as measured and as concluded."""

import json
import time

import pytest
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from flatten_det.commands import benchmark
from flatten_det.config import our_configs
from flatten_det.lab.benchmark.data import REST, Feeding

NANO = "flatten-pvt-nano_semantic-fpn_shapes"


@TRANSFORMS.register_module()
class Sleep(BaseTransform):
    """Takes its time."""

    def transform(self, results: dict) -> dict:
        time.sleep(0.05)
        return results


def test_slow_data_are_found_and_their_slow_transform_is_named(tmp_path, monkeypatch, capsys):
    config = tmp_path / "slow.py"
    config.write_text(
        f"_base_ = {str(our_configs()[NANO])!r}\n"
        "pipeline = _base_.train_dataloader.dataset.pipeline\n"
        "train_dataloader = dict(batch_size=2, dataset=dict(num_images=dict(train=12, val=2), pipeline=["
        "pipeline[0], dict(type='Sleep'), dict(type='Sleep'), *pipeline[1:]]))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--what", "data", str(config), "--workers", "1", "--rounds", "2", "--device", "cpu"]
    assert benchmark.main([*options, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(content["data"]) == ["0", "1"]
    assert all(len(rounds) == 2 for rounds in (*content["data"].values(), content["step"]))
    # 0.1 s an image, at least.
    assert max(content["data"]["0"] + content["data"]["1"]) < 10
    transforms = content["transforms"]
    assert 0.05 <= transforms["Sleep"] < 0.2
    assert 0.05 <= transforms["Sleep (2)"] < 0.2
    assert max(transforms, key=transforms.get) in ("Sleep", "Sleep (2)")
    assert {"LoadImageFromFile", "PackSegInputs", REST} <= transforms.keys()
    assert content["verdict"] in printed
    assert content["verdict"] in (tmp_path / "out" / "table.md").read_text()


def feeding(step: float) -> Feeding:
    return Feeding({0: [12.0], 2: [20.0, 22.0, 18.0], 4: [30.0]}, [step], {REST: 0.1}, 4)


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (19.0, "The model limits: a step trains 19 images/s, and with --workers 2 there are 20."),
        (25.0, "The model limits: a step trains 25 images/s, and with --workers 4 there are 30."),
        (
            95.0,
            "The data limit: a step trains 95 images/s, and with --workers 4 there are 30. It would take "
            "about 10 workers for each process, at 10 images/s each; this machine has 4 cores.",
        ),
    ],
)
def test_verdict(step, verdict):
    assert feeding(step).verdict == verdict


@pytest.mark.parametrize(
    "options", [["--workers", "0"], ["--workers", "-1", "2"], ["--rounds", "0"]]
)
def test_usage_errors(options, capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--what", "data", NANO, *options])
    assert stop.value.code == 2
    assert f"argument {options[0]}: must be" in capsys.readouterr().err
