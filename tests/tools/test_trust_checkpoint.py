"""Every tool that reads checkpoints: none runs a command in one; --trust-checkpoint is for one's own."""

from pathlib import Path

import pytest
import torch
from fixtures import write_detector_config
from malicious_files import OwnClass, save_command, served
from mmengine.config import Config
from tool_modules import one_line_error
from toy_training import make_config

from flatten_det.lab.benchmark.sources import build_whole


@pytest.fixture
def toy(tmp_path) -> list[str]:
    """The arguments of a training of milliseconds."""
    make_config(tmp_path, by_epoch=True)
    return [str(tmp_path / "toy.json"), "--no-data-check", "--work-dir", str(tmp_path / "run")]


@pytest.fixture
def detector(tmp_path, coco_folder) -> Path:
    return write_detector_config(tmp_path / "tiny.py", coco_folder)


def assert_refused(capsys, name: str) -> None:
    line = one_line_error(capsys)
    assert f"{name} cannot be read" in line
    assert "could run code (" in line
    assert "GLOBAL posix.system" in line
    assert "--trust-checkpoint" in line


TRAININGS = {
    "resume": lambda path: ["--resume", path],
    "load_from": lambda path: ["--cfg-options", f"load_from={path}"],
    "resume=True": lambda path: ["--cfg-options", f"load_from={path}", "resume=True"],
}


@pytest.mark.parametrize("way", TRAININGS)
def test_train(train_tool, toy, way, tmp_path, marker, capsys):
    path = save_command(tmp_path / "evil.pth", marker)
    assert train_tool.main([*toy, *TRAININGS[way](str(path))]) == 2
    assert_refused(capsys, f"checkpoint {path}")


def test_train_resumes_automatically(train_tool, toy, tmp_path, marker, capsys):
    (tmp_path / "run").mkdir()
    path = save_command(tmp_path / "run" / "epoch_1.pth", marker)
    (tmp_path / "run" / "last_checkpoint").write_text(str(path))
    assert train_tool.main([*toy, "--resume"]) == 2
    captured = capsys.readouterr().err
    assert f"warning: skipped checkpoint {path}: cannot be read: " in captured
    assert "none of the 1 checkpoints" in captured.splitlines()[-1]


def test_train_resumes_from_what_a_strangers_work_dir_names(
    train_tool, toy, tmp_path, marker, capsys
):
    """A copied work dir may name a download as its last checkpoint."""
    save_command(tmp_path / "evil.pth", marker)
    (tmp_path / "run").mkdir()
    with served(tmp_path) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        (tmp_path / "run" / "last_checkpoint").write_text(f"{address}/evil.pth")
        assert train_tool.main([*toy, "--resume", "--trust-checkpoint"]) == 2
    assert_refused(capsys, f"checkpoint {address}/evil.pth")


@pytest.mark.parametrize("of", ["model.init_cfg", "model.backbone.init_cfg"])
def test_train_with_init_cfg(train_tool, detector, of, tmp_path, marker, capsys):
    path = save_command(tmp_path / "evil.pth", marker)
    options = [f"{of}.type=Pretrained", f"{of}.checkpoint={path}"]
    command = [str(detector), "--no-data-check", "--work-dir", str(tmp_path / "run")]
    assert train_tool.main([*command, "--cfg-options", *options]) == 2
    assert_refused(capsys, f"checkpoint {path}")


@pytest.mark.parametrize("way", ["local", "download"])
@pytest.mark.parametrize("tool", ["test", "infer", "convert"])
def test_other_readers(tool, way, request, detector, coco_folder, tmp_path, marker, capsys):
    main = request.getfixturevalue(f"{tool}_tool").main
    out = str(tmp_path / "out.pth")
    image = str(next((coco_folder / "val2017").iterdir()))
    path = str(save_command(tmp_path / "evil.pth", marker))
    with served(tmp_path) as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(tmp_path / "torch"))
        source = path if way == "local" else f"{address}/evil.pth"
        command = {
            "test": [str(detector), source, "--work-dir", str(tmp_path / "run")],
            "infer": [str(detector), source, image, "--out-dir", out],
            "convert": [source, out],
        }[tool]
        assert main(command) == 2
    assert_refused(capsys, "evil.pth" if tool == "convert" else f"checkpoint {source}")
    assert not (tmp_path / "out.pth").exists()


def test_what_only_measures_reads_no_checkpoint(
    get_flops_tool, check_data_tool, detector, tmp_path, marker, capsys
):
    path = save_command(tmp_path / "evil.pth", marker)
    given = dict(type="Pretrained", checkpoint=str(path))
    text = f"\nmodel.update(init_cfg={given})\nmodel['backbone'].update(init_cfg={given})\n"
    with detector.open("a") as file:
        file.write(text + f"load_from = {str(path)!r}\nresume = True\n")
    assert get_flops_tool.main([str(detector), "--shape", "64", "64"]) == 0
    assert check_data_tool.main([str(detector), "--workers", "0"]) == 0
    build_whole(Config.fromfile(detector))


@pytest.fixture
def own_detector(trained_detector, tmp_path):
    """A checkpoint of one's own that holds an object of one's own."""
    content = torch.load(trained_detector.checkpoint, weights_only=False)
    path = tmp_path / "own.pth"
    torch.save(content | {"notes": OwnClass()}, path)
    return trained_detector._replace(checkpoint=path)


def warnings_about(path: Path, capsys) -> int:
    lines = capsys.readouterr().err.splitlines()
    return sum(
        line.startswith(f"warning: checkpoint {path} holds more than data") for line in lines
    )


@pytest.mark.parametrize("tool", ["test", "infer"])
def test_own_detectors_are_trusted_on_request(
    tool, request, own_detector, coco_folder, tmp_path, capsys
):
    main = request.getfixturevalue(f"{tool}_tool").main
    config, path, _ = own_detector
    command = [str(config), str(path)]
    if tool == "infer":
        image = next((coco_folder / "val2017").iterdir())
        command += [str(image), "--out-dir", str(tmp_path / "out")]
    else:
        command += ["--work-dir", str(tmp_path / "run")]
    assert main(command) == 2
    assert "OwnClass" in one_line_error(capsys)
    assert main([*command, "--trust-checkpoint"]) == 0
    assert warnings_about(path, capsys) == 1


@pytest.mark.parametrize("given", ["path", "auto"])
def test_own_trainings_are_resumed_on_request(train_tool, toy, given, tmp_path, capsys):
    assert train_tool.main([*toy, "--cfg-options", "train_cfg.max_epochs=1"]) == 0
    path = tmp_path / "run" / "epoch_1.pth"
    content = torch.load(path, weights_only=False)
    torch.save(content | {"notes": OwnClass()}, path)
    resume = ["--resume", *([str(path)] if given == "path" else [])]
    assert train_tool.main([*toy, *resume]) == 2
    capsys.readouterr()
    assert train_tool.main([*toy, *resume, "--trust-checkpoint"]) == 0
    assert warnings_about(path, capsys) == 1
    assert (tmp_path / "run" / "epoch_3.pth").exists()


def test_own_classifiers_are_converted_on_request(convert_tool, golden, tmp_path, capsys):
    source = golden("pvtv2_b0_224").save(tmp_path / "own.pth")
    content = torch.load(source, weights_only=False)
    torch.save({"model": content.get("model", content), "args": OwnClass()}, source)
    command = [str(source), str(tmp_path / "out.safetensors")]
    assert convert_tool.main(command) == 2
    assert "OwnClass" in one_line_error(capsys)
    assert convert_tool.main([*command, "--trust-checkpoint"]) == 0
    assert warnings_about(source, capsys) == 1
