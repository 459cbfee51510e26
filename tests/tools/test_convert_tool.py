"""tools/convert_checkpoint.py: what it prints and writes, and its one-line errors."""

import pytest
import torch
from safetensors.torch import load_file

from flatten_det.backbones import build_backbone


@pytest.fixture
def official(golden, tmp_path):
    return str(golden("pvtv2_b0_224").save(tmp_path / "official.pth"))


def test_says_what_became_of_the_file(convert_tool, official, tmp_path, capsys):
    out = tmp_path / "new" / "b0.safetensors"
    assert convert_tool.main([official, str(out)]) == 0
    printed = capsys.readouterr().out
    parameters = len(build_backbone("flatten-pvtv2-b0").state_dict())
    assert f"Loaded {parameters} parameters from {official}" in printed
    assert "dropped 2: head.weight, head.bias" in printed
    assert f"flatten-pvtv2-b0: written to {out}" in printed
    assert len(load_file(out)) == parameters


def test_image_size(convert_tool, official, tmp_path, capsys):
    out = tmp_path / "b0.pth"
    assert convert_tool.main([official, str(out), "--img-size", "320", "480"]) == 0
    assert "resized 8: (1, 196, 160) -> (1, 600, 160)" in capsys.readouterr().out
    weights = torch.load(out, weights_only=True)["state_dict"]
    assert weights["block4.0.attn.positional_encoding"].shape == (1, 10 * 15, 256)


def test_wrong_backbone_is_one_error(convert_tool, official, tmp_path, capsys):
    command = [official, str(tmp_path / "b0.pth"), "--backbone", "flatten-pvtv2-b2"]
    assert convert_tool.main(command) == 2
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "b0.pth").exists()


@pytest.mark.parametrize(
    "arguments",
    [["b0.onnx"], ["b0.pth", "--backbone", "resnet50"], ["b0.pth", "--img-size", "8"]],
)
def test_usage_errors(convert_tool, official, arguments):
    with pytest.raises(SystemExit) as stopped:
        convert_tool.main([official, *arguments])
    assert stopped.value.code == 2
