"""Checkpoints that are damaged, forged or of another shape, through everything that reads them."""

import shutil

import pytest
from checkpoint_cases import pytorch_files, safetensors_files
from fuzzing import empty_folder, ending, files_in, fuzz, numbers_of_cases
from toy_training import LineModel, make_config

import flatten_det.backbones.weights as convert_module
from flatten_det.backbones import build_backbone
from flatten_det.cli import run_tool
from flatten_det.files.checkpoints import load_as_data, read_checkpoint
from flatten_det.predict.engine import load_weights
from flatten_det.train.run import train

ARCH = dict(embed_dims=(4, 4, 4, 4), num_heads=(1, 1, 1, 1), depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training of 15 iterations, with checkpoints of iterations 5 and 10."""
    folder = tmp_path_factory.mktemp("toy")
    cfg = make_config(folder, by_epoch=False)
    cfg.default_hooks.checkpoint.interval = 5
    train(cfg)
    return folder


@numbers_of_cases
@pytest.mark.parametrize("named", [False, True])
def test_resume(run, train_tool, tmp_path, named, num_cases):
    config, work_dir = run / "toy.json", tmp_path / "run"
    newest = work_dir / "iter_10.pth"

    def check(content: bytes) -> None:
        empty_folder(work_dir)
        shutil.copy(run / "run" / "iter_5.pth", work_dir)
        newest.write_bytes(content)
        options = [newest] if named else []
        end = ending(train_tool.main, config, "--work-dir", work_dir, "--resume", *options)
        end.check(newest)
        assert not list(work_dir.glob("*.partial"))

    fuzz(check, num_cases, pytorch_files(load_as_data(str(run / "run" / "iter_10.pth"))))


@numbers_of_cases
def test_weights_for_inference(tmp_path, num_cases):
    path = tmp_path / "weights.pth"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        model = LineModel()
        ending(lambda arguments: run_tool(lambda: load_weights(model, str(path)))).check(path)

    content = {
        "state_dict": LineModel().state_dict(),
        "meta": {"dataset_meta": {"CLASSES": ("a",)}},
    }
    fuzz(check, num_cases, pytorch_files(content))


@numbers_of_cases
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_convert(convert_tool, tmp_path, monkeypatch, suffix, num_cases):
    backbone = build_backbone("flatten-pvt-t", arch=ARCH, pretrain_img_size=32)
    monkeypatch.setattr(convert_module, "build_backbone", lambda name, **changes: backbone)
    source, out = tmp_path / f"source{suffix}", tmp_path / "out"

    def check(content: bytes) -> None:
        empty_folder(out)
        source.write_bytes(content)
        target = out / f"backbone{suffix}"
        end = ending(convert_tool.main, source, target, "--backbone", "flatten-pvt-t")
        end.check(source)
        if end.code:
            assert files_in(out) == []
        else:
            assert read_checkpoint(target)

    weights = backbone.state_dict()
    files = pytorch_files({"model": weights}) if suffix == ".pth" else safetensors_files(weights)
    fuzz(check, num_cases, files)
