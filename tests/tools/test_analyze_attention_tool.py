"""tools/analyze_attention.py: figures, numbers, and its one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tool_modules import load_tool

from flatten_det.backbones import build_backbone

QUICKSTART = str(
    Path(__file__).parents[2] / "configs" / "quickstart" / "flatten-pvt-nano_semantic-fpn_shapes.py"
)
RESNET = "model.backbone={'_delete_': True, 'type': 'ResNet', 'depth': 18}"


@pytest.fixture(scope="module")
def tool():
    return load_tool("analyze_attention")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        pixels = rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def test_config(tool, images, tmp_path, capsys):
    out = tmp_path / "out"
    argv = [QUICKSTART, str(images), "--size", "64", "96", "--out-dir", str(out)]
    options = ["--points", "0.5,0.5", "0,1", "--heads", "0", "1", "--layers", "1", "3.2"]
    assert tool.main([*argv, *options]) == 0
    captured = capsys.readouterr()
    assert "random" in captured.err
    assert "layer 1.1: entropy of softmax < focused linear" in captured.out
    assert "the matrices give what the layers do, to" in captured.out
    drawn = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    maps = {f"a/maps_head{head}_point{point}.png" for head in (0, 1) for point in (1, 2)}
    assert drawn == {"statistics.png", "a/spectra.png"} | maps
    for path in out.rglob("*.png"):
        with Image.open(path) as picture:
            assert picture.width == round(3.3 * 220)
    content = json.loads((out / "analysis.json").read_text())
    assert (content["target"], content["size"]) == (QUICKSTART, [64, 96])
    assert [layer["layer"] for layer in content["summary"]] == ["1.1", "3.2"]
    first, second, _ = content["images"]
    assert Path(first["image"]).name == "a.png"
    layer = first["layers"][0]
    assert (layer["queries"], layer["head_dim"]) == (16 * 24, 32)
    assert layer["rank_bound_of_linear_attention"] == 32
    assert layer["error"] < 1e-5
    own = layer["variants"][-1]
    assert own["is_the_layers_own"]
    spectrum = own["spectra"][0]
    assert spectrum["rank"] + spectrum["short_of_full_rank"] == 16 * 24
    assert second["layers"][0]["variants"][-1]["spectra"] == []
    steps = content["summary"][0]["entropy_order"]
    assert [step["difference_of_normalised_entropy"]["images"] for step in steps] == [3, 3]


def test_softmax_backbone_with_a_checkpoint(tool, images, tmp_path, capsys):
    backbone = build_backbone("pvt-t")
    torch.save({"state_dict": backbone.state_dict()}, tmp_path / "pvt.pth")
    out = tmp_path / "out"
    argv = ["--model", "pvt-t", str(tmp_path / "pvt.pth"), str(images / "a.png"), "--layers", "1.1"]
    assert tool.main([*argv, "--size", "64", "64", "--no-spectra", "--out-dir", str(out)]) == 0
    captured = capsys.readouterr()
    assert "random" not in captured.err
    assert "is not decided" in captured.out
    assert not (out / "a" / "spectra.png").exists()
    (layer,) = json.loads((out / "analysis.json").read_text())["images"][0]["layers"]
    names = [v["variant"] for v in layer["variants"]]
    assert names == ["softmax", "plain linear", "focused linear"]
    assert (layer["queries"], layer["keys"]) == (256, 4)


def test_layers_without_the_heads_are_named(tool, images, tmp_path, capsys):
    argv = [QUICKSTART, str(images / "a.png"), "--size", "64", "64", "--heads", "1"]
    assert tool.main([*argv, "--out-dir", str(tmp_path)]) == 0
    assert "layer 1.1 is left out: it has none of these heads" in capsys.readouterr().err
    layers = json.loads((tmp_path / "analysis.json").read_text())["images"][0]["layers"]
    assert [layer["layer"] for layer in layers] == ["2.2", "3.3", "4.1"]
    assert list(layers[0]["variants"][0]["heads"]) == ["1"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["flatten-pvt-tt", "IMAGES"], "did you mean flatten-pvt-t?"),
        (["flatten-pvt-t", "IMAGES"], "flatten-pvt-t is no config file, but a model's name: --mo"),
        (
            ["--model", "deit-t-focussed", "IMAGES"],
            "did you mean deit-t-focused? Names are flatten-pvt-t, ",
        ),
        (["--model", "deit-t", "IMAGES", "--cfg-options", "a=1"], "there is none with --model"),
        (["--model", "flatten-pvt-t", "nowhere"], "nowhere: no image found"),
        (["--model", "flatten-pvt-t", "nowhere.pth", "IMAGES"], "nowhere.pth"),
        ([QUICKSTART, "nowhere.pth", "IMAGES"], "checkpoint nowhere.pth not found"),
        ([QUICKSTART, "IMAGES", "--layers", "7"], "--layers 7: no such stage or block"),
        ([QUICKSTART, "IMAGES", "--heads", "9"], "no chosen layer has a head 9"),
        ([QUICKSTART, "BROKEN"], "error: 1 of 1 images: image BROKEN cannot be decoded"),
        ([QUICKSTART, "IMAGES", "--cfg-options", "model.backbone.foo=1"], "keyword argument 'foo'"),
        ([QUICKSTART, "IMAGES", "--cfg-options", "model=3"], f"file {QUICKSTART}: what it says"),
        ([QUICKSTART, "IMAGES", "--cfg-options", RESNET], "ResNet has no attention to analyse"),
    ],
)
def test_mistakes(tool, images, tmp_path, capsys, argv, message):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    places = {"IMAGES": str(images), "BROKEN": str(broken)}
    out = ["--out-dir", str(tmp_path / "out")]
    assert tool.main([*(places.get(word, word) for word in argv), *out]) == 2
    assert message.replace("BROKEN", str(broken)) in capsys.readouterr().err.splitlines()[-1]


def test_broken_image_among_others(tool, images, tmp_path, capsys):
    broken = tmp_path / "0.png"
    broken.write_bytes(b"no image")
    out = tmp_path / "out"
    options = ["--size", "64", "64", "--layers", "4", "--no-spectra", "--out-dir", str(out)]
    assert tool.main([QUICKSTART, str(broken), str(images / "a.png"), *options]) == 2
    content = json.loads((out / "analysis.json").read_text())
    assert [Path(image["image"]).name for image in content["images"]] == ["a.png"]
    assert content["unreadable"] == [
        f"image {broken} cannot be decoded (8 bytes): get the file again or remove it"
    ]
    assert (out / "statistics.png").is_file()
    assert (
        "error: 1 of 2 images, without which the statistics are: image" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--points", "2,0"], "from 0 to 1"),
        (["--points", "1"], "give X,Y such as 0.5,0.25"),
        (["--size", "8", "64"], "at least 32 pixels a side"),
        (["--channels", "0"], "must be at least 1"),
        (["weights.pth"], "give the images to look at, after weights.pth"),
    ],
)
def test_usage_errors(tool, images, capsys, options, message):
    given = [] if options[0].endswith(".pth") else [str(images)]
    with pytest.raises(SystemExit) as exit_:
        tool.main(["--model", "flatten-pvt-t", *given, *options])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
