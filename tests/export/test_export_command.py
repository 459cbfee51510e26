"""``flatten-det export``: the files it writes, what it prints, and its errors."""

import errno
import json

import cv2
import numpy as np
import onnx
import pytest
import torch
from exported_models import nano_segmentor
from readme_commands import save_random_weights

from flatten_det.backbones import build_backbone
from flatten_det.commands.export import main, parse_args
from flatten_det.export import exporters
from flatten_det.export.exporters import kept_in_float
from flatten_det.onnx_runner import OnnxRunner
from flatten_det.predict.predictor import Predictor

SEGMENTOR = "flatten-pvt-nano_semantic-fpn_shapes"
DETECTOR = "retinanet_flatten-pvt-nano_fpn_shapes"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of the segmentor, random."""
    path = tmp_path_factory.mktemp("weights") / "own" / "segmentor.pth"
    torch.manual_seed(0)
    save_random_weights(SEGMENTOR, path)
    return path


def refusal(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("warning: ")]
    return line


def picture(path, height=90, width=140):
    small = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))
    return path


def test_segmentor_end_to_end(here, weights, capsys):
    """The file predicts what torch does, by the rules that it carries."""
    assert main([SEGMENTOR, str(weights), "--legacy", "--check"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("labels equal") == 3
    assert printed.count("onnxruntime") == 3
    assert f"written to {SEGMENTOR}.onnx" in printed
    runner = OnnxRunner(here / f"{SEGMENTOR}.onnx")
    assert runner.metadata["resize"] == {"keep_ratio": True, "scale": [128, 128]}
    assert runner.metadata["channel_order"] == "rgb"
    assert runner.metadata["mean"] == pytest.approx([123.675, 116.28, 103.53])
    image = picture(here / "image.png")
    (own,) = runner(image)
    (other,) = Predictor(SEGMENTOR, weights, "cpu")(image)
    assert own.names == other.names
    assert [list(map(int, colour)) for colour in own.palette] == [list(c) for c in other.palette]
    assert own.label_map.shape == (90, 140)
    assert len(np.unique(other.label_map)) > 1
    assert (own.label_map == other.label_map).mean() > 0.999


def test_backbone_by_its_name(here, capsys):
    backbone = build_backbone("flatten-pvt-t")
    torch.save(backbone.state_dict(), here / "own.pth")
    arguments = ["flatten-pvt-t", "own.pth", "--legacy", "--precision", "fp16", "--out", "x/b.onnx"]
    assert main(arguments) == 0
    model = onnx.load(here / "x" / "b.onnx")
    assert [output.name for output in model.graph.output] == [f"stride{s}" for s in (4, 8, 16, 32)]
    own = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert own["task"] == "backbone"
    assert own["precision"] == "fp16"
    assert (here / "x" / "b.onnx").stat().st_size < 2.3 * 11.7e6


@pytest.mark.slow
def test_backbone_of_a_detector_with_its_weights(here):
    save_random_weights(DETECTOR, here / "own" / "detector.pth")
    assert main([DETECTOR, "own/detector.pth", "--backbone", "--legacy", "--check"]) == 0
    names = {tensor.name for tensor in onnx.load(f"{DETECTOR}.onnx").graph.initializer}
    assert not any("head" in name for name in names)


@pytest.mark.slow
def test_int8(here, weights, capsys):
    """A third of the bytes, and the same labels almost everywhere."""
    images = here / "images"
    images.mkdir()
    for number in range(3):
        picture(images / f"{number}.png", 128, 128 - number)
    full = [SEGMENTOR, str(weights), "--legacy", "--resize"]
    assert main([*full, "--out", "full.onnx"]) == 0
    assert main([*full, "--out", "int8.onnx", "--int8", "images"]) == 0
    sizes = [(here / name).stat().st_size for name in ("full.onnx", "int8.onnx")]
    assert sizes[1] < 0.4 * sizes[0]
    runners = [OnnxRunner(here / name) for name in ("full.onnx", "int8.onnx")]
    assert runners[1].metadata == runners[0].metadata | {"precision": "int8"}
    own, other = (runner(images / "0.png")[0].label_map for runner in runners)
    assert (own == other).mean() > 0.9


def test_products_of_activations_stay_in_float():
    """And the first and last convolution."""
    graph = onnx.parser.parse_graph(
        """g (float[n] x, float[n] w) => (float[n] y) <float[1] w = {0}> {
            [first] a = Conv (x, w)
            [projection] b = MatMul (a, w)
            [attention] c = MatMul (b, a)
            [middle] d = Conv (c, w)
            [last] y = Conv (d, w)
        }"""
    )
    model = onnx.helper.make_model(graph)
    assert set(kept_in_float(model)) == {"attention", "first", "last"}


def test_usage_errors(capsys):
    for arguments, message in (
        (["x", "--format", "torch-export", "--opset", "18"], "are for --format onnx"),
        (["x", "--int8"], "expected at least one argument"),
        (["x", "--int8", "a.png", "--precision", "fp16"], "quantise from --precision fp32"),
        (["x", "--resize", "--argmax"], "not allowed with"),
    ):
        with pytest.raises(SystemExit, match="2"):
            parse_args(arguments)
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SEGMENTOR, "--opset", "12"], "the exporter writes 18 to"),
        ([SEGMENTOR, "--opset", "99"], "the exporter writes 18 to"),
        ([SEGMENTOR, "--legacy", "--opset", "21"], "--legacy writes 17 to 20"),
        ([SEGMENTOR, "--out", "model.pt2"], "must end in .onnx"),
        ([SEGMENTOR, "--out", "there.onnx"], "there.onnx exists"),
        (["flatten-pvt-t", "--int8", "image.png"], "export the whole model"),
        ([SEGMENTOR, "--int8", "nothing.png"], "no image found"),
        ([SEGMENTOR, "missing.pth"], "missing.pth"),
        (["flatten-pvt-x"], "neither a config file nor a backbone"),
        (["mask2former_flatten-swin-t_8xb2-lsj-50e_coco"], "--backbone exports the backbone"),
        ([SEGMENTOR, "--cfg-options", "model.test_cfg.mode=slide"], "sliding windows"),
        ([DETECTOR, "--legacy"], "a detector cannot be exported with --legacy"),
        ([DETECTOR, "--argmax"], "with --resize or --argmax"),
        ([DETECTOR, "--int8", "image.png"], "with --int8"),
        ([DETECTOR, "--format", "torch-export"], "with --format torch-export"),
    ],
)
def test_errors_are_one_line(arguments, message, here, capsys):
    picture(here / "image.png")
    (here / "there.onnx").touch()
    assert message in refusal(capsys, *arguments)
    assert {path.name for path in here.iterdir()} == {"image.png", "there.onnx"}
    assert (here / "there.onnx").stat().st_size == 0


def test_unknown_steps_of_the_test_pipeline(here, capsys):
    steps = (
        "[dict(type='LoadImageFromFile'),dict(type='Pad',size=(9,9)),dict(type='PackSegInputs')]"
    )
    (here / "config.py").write_text(
        f"_base_ = 'flatten_det::quickstart/{SEGMENTOR}.py'\n"
        f"test_dataloader = dict(dataset=dict(pipeline={steps}))\n"
    )
    assert "test pipeline has Pad" in refusal(capsys, "config.py")


def test_inputs_are_not_overwritten(here, capsys):
    own = picture(here / "own.png")
    own.rename(here / "own.onnx")
    line = refusal(capsys, SEGMENTOR, "--int8", "own.onnx", "--out", "own.onnx", "--overwrite")
    assert "would overwrite the input" in line


def test_checkpoint_of_another_model(here, capsys):
    torch.save(nano_segmentor("FPNHead").state_dict(), here / "other.pth")
    assert "other.pth" in refusal(capsys, SEGMENTOR, "other.pth")


def test_full_disk(here, weights, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("flatten_det.files.atomic._replace", full)
    assert "the disk is full" in refusal(capsys, SEGMENTOR, str(weights), "--legacy")
    assert not list(here.iterdir())


def test_weights_beyond_what_a_file_holds(here, capsys, monkeypatch):
    monkeypatch.setattr(exporters, "_LARGEST", 1000)
    assert "a file of ONNX holds 2 GB" in refusal(capsys, SEGMENTOR, "--legacy")


def test_missing_packages(here, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert "pip install 'flatten-det[onnx]'" in refusal(capsys, SEGMENTOR)


@pytest.mark.slow
def test_a_file_that_computes_something_else_is_not_written(here, weights, capsys, monkeypatch):
    def wrong(content, kind):
        own = runner_of(content, kind)
        return lambda image: [out + 1 for out in own(image)]

    from flatten_det.export.check import runner_of

    monkeypatch.setattr("flatten_det.export.run.runner_of", wrong)
    line = refusal(capsys, SEGMENTOR, str(weights), "--legacy", "--check")
    assert "nothing was written" in line
    assert not list(here.iterdir())
