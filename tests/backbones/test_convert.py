"""Conversion of checkpoints in the official format; their names and shapes follow from the golden files."""

import pytest
import torch
from safetensors.torch import save_file

from flatten_det.attention import resize_grid
from flatten_det.backbones import BACKBONES, build_backbone
from flatten_det.backbones.weights import convert_checkpoint, identify_backbone
from flatten_det.errors import CheckpointError
from flatten_det.files.checkpoints import read_checkpoint


def load_into(name: str, path, **changes):
    model = build_backbone(name, init_cfg=dict(type="Pretrained", checkpoint=str(path)), **changes)
    model.init_weights()
    return model


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_converted_file_loads_like_the_official_one(suffix, golden, tmp_path):
    official = golden("pvtv2_b0_224").save(tmp_path / "official.pth")
    name, report = convert_checkpoint(official, tmp_path / f"backbone{suffix}")
    assert name == "flatten-pvtv2-b0"
    assert report.dropped == ["head.weight", "head.bias"]
    expected = load_into(name, official).state_dict()
    converted = load_into(name, tmp_path / f"backbone{suffix}").state_dict()
    assert all(torch.equal(converted[n], value) for n, value in expected.items())
    assert (tmp_path / f"backbone{suffix}").stat().st_size < official.stat().st_size
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", BACKBONES)
def test_own_names_are_recognised(name):
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    assert identify_backbone(state, "file") == name


def test_grids_go_to_another_size_and_back(golden, tmp_path):
    official = golden("pvt_tiny_224").save(tmp_path / "official.pth")
    larger, back = tmp_path / "larger.pth", tmp_path / "back.pth"
    _, report = convert_checkpoint(official, larger, img_size=320)
    assert len(report.resized) == 4 + 8  # position embeddings and positional encodings
    convert_checkpoint(larger, back, "flatten-pvt-t", img_size=224)
    first, there, again = map(read_checkpoint, (official, larger, back))
    grid = "block2.0.attn.positional_encoding"
    expected = resize_grid(first[grid], (28, 28), (40, 40))
    torch.testing.assert_close(there[grid], expected)
    torch.testing.assert_close(again[grid], resize_grid(expected, (40, 40), (28, 28)))
    assert torch.equal(again["block2.0.attn.kv.weight"], first["block2.0.attn.kv.weight"])
    load_into("flatten-pvt-t", larger, pretrain_img_size=320)


def test_grids_of_a_rectangle(golden, tmp_path):
    official = golden("pvt_tiny_224").save(tmp_path / "official.pth")
    convert_checkpoint(official, tmp_path / "wide.pth", img_size=(320, 480))
    wide = load_into("flatten-pvt-t", tmp_path / "wide.pth", pretrain_img_size=(320, 480))
    assert wide.block2[0].attn.positional_encoding.shape == (1, 40 * 60, 128)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_is_not_replaced_by_its_backbone(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, hard, link = (tmp_path / f"{name}{suffix}" for name in ("own", "hard", "link"))
    state = build_backbone("pvtv2-b0").state_dict()
    save_file(state, source) if suffix == ".safetensors" else torch.save(state, source)
    before = source.read_bytes()
    hard.hardlink_to(source)
    link.symlink_to(source.name)
    for name in (source, source.name, f"../{tmp_path.name}/{source.name}", hard, link):
        for pair in ((source, name), (name, source), (link, name)):
            with pytest.raises(CheckpointError, match="this is the checkpoint itself"):
                convert_checkpoint(*pair)
    assert source.read_bytes() == hard.read_bytes() == before
    assert link.is_symlink()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_only_converted_files_are_replaced(suffix, tmp_path):
    source, target = tmp_path / "own.pth", tmp_path / f"target{suffix}"
    state = build_backbone("pvtv2-b0").state_dict()
    torch.save(state, source)
    save_file(state, tmp_path / "foreign.safetensors")
    for foreign in (source, tmp_path / "foreign.safetensors"):
        target.write_bytes(foreign.read_bytes())
        with pytest.raises(CheckpointError, match=rf"target{suffix}: there is a file already"):
            convert_checkpoint(source, target, "pvtv2-b0")
        assert target.read_bytes() == foreign.read_bytes()
    target.unlink()
    target.symlink_to("elsewhere" + suffix)
    convert_checkpoint(source, target, "pvtv2-b0")
    convert_checkpoint(source, target, "pvtv2-b0")  # Its own work.
    assert target.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        {"own.pth", "foreign.safetensors", target.name, f"elsewhere{suffix}"}
    )
    target.unlink()
    target.mkdir()
    with pytest.raises(CheckpointError, match="there is a file already"):
        convert_checkpoint(source, target, "pvtv2-b0")


def test_a_trained_detector_gives_its_backbone(tmp_path):
    backbone = build_backbone("pvtv2-b0")
    whole = {f"backbone.{n}": v for n, v in backbone.state_dict().items()}
    torch.save({"state_dict": whole | {"neck.w": torch.ones(1)}}, tmp_path / "epoch_12.pth")
    name, _ = convert_checkpoint(tmp_path / "epoch_12.pth", tmp_path / "backbone.safetensors")
    assert name == "pvtv2-b0"


def test_foreign_and_wrong_files(tmp_path):
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="not the parameters of any backbone"):
        convert_checkpoint(tmp_path / "resnet.pth", tmp_path / "out.pth")
    with pytest.raises(CheckpointError, match="missing in the file: block1"):
        convert_checkpoint(tmp_path / "resnet.pth", tmp_path / "out.pth", "flatten-pvt-t")
    with pytest.raises(ValueError, match=r"must end in \.pth or \.safetensors"):
        convert_checkpoint(tmp_path / "resnet.pth", tmp_path / "out.onnx")
    assert not (tmp_path / "out.pth").exists()
