"""What the README and the manual tell to type works: run here, by the trainings' tests or by .ci/run."""

import json
import re
import shlex
import subprocess
import sys
import sysconfig
import venv
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import readme_commands as manual
import torch
from exported_models import save_finding_detector
from readme_commands import ROOT, run, save_random_weights, words_of, workspace
from tool_modules import forget_named_instances
from zoo_fixture import make_small_zoo

from flatten_det.backbones import FLattenPVT
from flatten_det.commands import main
from flatten_det.config import our_configs
from flatten_det.onnx_runner import OnnxRunner
from flatten_det.predict.predictor import Predictor


@pytest.fixture
def run_here(tmp_path, monkeypatch, capsys):
    """Like :func:`run`, in this process, as importing the packages takes most of a short command's time."""
    monkeypatch.chdir(workspace(tmp_path))

    def run_here(command: str, code: int = 0) -> str:
        forget_named_instances()
        monkeypatch.setattr(sys, "argv", sys.argv)  # Which a command changes.
        program, *arguments = words_of(command)
        assert program == "flatten-det"
        assert main(arguments) == code
        return capsys.readouterr().out

    return run_here


def test_first_screen_has_the_two_commands():
    assert manual.QUICKSTART == "pip install uv && uv run tools/train.py " + (
        "configs/quickstart/mask-rcnn_flatten-pvt-nano_fpn_shapes.py"
    )
    assert manual.TESTS == "pip install uv && uv run pytest"
    assert manual.README.index(manual.TESTS) < manual.README.index("\n## ")
    assert len(manual.README.encode()) <= 8000


def test_every_command_is_run():
    """By a name of readme_commands, alone or in a list, that a test uses."""
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    used = {manual.PACKAGE}  # Which installs from a registry what test_installed.py builds.
    for name, value in vars(manual).items():
        if re.search(rf"(?:manual\.|from readme_commands import .*\b){name}\b", tests):
            used |= {value} if isinstance(value, str) else set(value if type(value) is list else ())
    assert {command for commands in manual.COMMANDS.values() for command in commands} <= used
    steps = (ROOT / ".ci" / "run").read_text()
    assert all(command in steps for command in manual.IN_CI)


def test_every_file_and_config_it_names_exists():
    names = our_configs()
    for page, text in manual.PAGES.items():
        for path in re.findall(r"(?:configs|tools|tests)/[\w./-]*\.(?:py|md)", text):
            assert (ROOT / path).is_file(), (page, path)
        for name in re.findall(r"\b[\w-]+_(?:shapes|coco|trees)\b[\w-]*(?=[ \"`]|\.py)", text):
            assert name in names, (page, name)


@pytest.mark.parametrize(
    "line", sorted(set(re.findall(r"flatten-det .*", "\n".join(manual.OTHER))))
)
def test_options_of_commands_that_need_a_cluster(line):
    """They cannot be run here; their options exist."""
    command, *arguments = shlex.split(line)[1:]
    assert import_module(f"flatten_det.commands.{command}").parse_args(arguments)


@pytest.mark.parametrize(
    ("page", "number", "printed"),
    [
        ("python", 1, "(1, 64, 50, 84)"),
        ("python", 2, "[1, 64000, 64]"),
        ("extend", 0, "FourConvolutions"),
        ("extend", 1, "(1, 64, 16, 24)"),
        ("export", 4, ""),
        ("evidence", 0, ""),
    ],
)
def test_python_example(page, number, printed, tmp_path, monkeypatch, capsys):
    """The first of the page on Python needs a training, and is run after it."""
    monkeypatch.chdir(tmp_path)
    exec(manual.PYTHON[page][number], {})
    assert printed in capsys.readouterr().out
    for picture in tmp_path.glob("*.png"):
        assert cv2.imread(str(picture)).shape[1] > 500


def test_every_python_example_is_run():
    """Above, after the quickstart's training, after exports, and with a server."""
    counts = {page: len(blocks) for page, blocks in manual.PYTHON.items() if blocks}
    assert counts == {
        "predict": 1,
        "python": 3,
        "extend": 2,
        "export": 5,
        "evidence": 1,
        "serve": 1,
    }


def test_models_command(run_here):
    assert manual.QUICKSTART.split("/")[-1].removesuffix(".py") in run_here(manual.MODELS_COMMAND)


def test_missing_data_command(run_here):
    assert "data/coco" in run_here(manual.CHECK_COCO, code=1)


@pytest.mark.parametrize("command", manual.ON_WEIGHTS)
def test_weights_command(command, run_here, tmp_path):
    source, destination = (tmp_path / word for word in command.split()[-2:])
    source.parent.mkdir()
    torch.save({"model": FLattenPVT("tiny").state_dict()}, source)
    assert "flatten-pvt-t: written to" in run_here(command)
    assert destination.stat().st_size > 0


@pytest.mark.parametrize("command", manual.ON_LARGE_IMAGES)
def test_large_images(command, run_here, tmp_path):
    config, checkpoint, image = command.split()[2:5]
    save_random_weights(config, tmp_path / checkpoint)
    cv2.imwrite(str(tmp_path / image), np.zeros((300, 500, 3), np.uint8))
    run_here(command)
    prediction = json.loads((tmp_path / "outputs" / "preds" / "my_large_image.json").read_text())
    assert (prediction["height"], prediction["width"]) == (300, 500)


@pytest.fixture
def photos(tmp_path) -> list[str]:
    """What the page on prediction is about, and random weights."""
    config, checkpoint = manual.ON_PHOTOS[0].split()[2:4]
    save_random_weights(config, tmp_path / checkpoint)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    (tmp_path / "my_photos").mkdir()
    for name in ("my_image.jpg", "my_photos/1.jpg", "my_photos/2.png"):
        cv2.imwrite(str(tmp_path / name), pixels)
    clip = cv2.VideoWriter(
        str(tmp_path / "my_clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 25, (90, 60)
    )
    for _ in range(5):
        clip.write(pixels)
    clip.release()
    return ["vis/1.jpg", "vis/2.jpg", "preds/1.json", "preds/2.json"]


def test_predictions_in_the_shell(photos, run_here, tmp_path):
    pictures, as_coco, video = manual.ON_PHOTOS
    run_here(pictures)
    assert all((tmp_path / "outputs" / name).is_file() for name in photos)
    run_here(as_coco)
    ids = json.loads((tmp_path / "outputs" / "coco" / "predictions-ids.json").read_text())
    assert [image["id"] for image in ids["images"]] == [1, 2]
    assert "my_clip.mp4: 5 frames" in run_here(video)


def test_predictions_in_python(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(manual.PYTHON["predict"][0], {})
    assert capsys.readouterr().out.startswith("my_image.jpg [[")
    assert cv2.imread(str(tmp_path / "drawn.png")).shape == (420, 630, 3)


@pytest.mark.slow
def test_benchmark_of_the_attention(tmp_path):
    cwd = workspace(tmp_path)
    less = ["--shape", "32,2,9,7", "--rounds", "1", "--candidates", "flatten_det", "eager"]
    assert "flatten_det" in run(manual.BENCHMARK_ATTENTION, cwd, *less)
    names = {path.name for path in (cwd / "outputs" / "attention").iterdir()}
    assert names >= {"results.json", "results.csv", "figure.png"}


@pytest.mark.slow
def test_benchmark(tmp_path):
    cwd = workspace(tmp_path)
    printed = run(manual.BENCHMARK, cwd, "--sizes", "64", "128", "--rounds", "2")
    assert "speed-up over flatten-pvt-t" in printed
    names = {path.name for path in (cwd / "outputs" / "speed").iterdir()}
    assert names == {"results.json", "results.csv", "table.md", "figure.png"}
    cells = json.loads((cwd / "outputs" / "speed" / "results.json").read_text())["cells"]
    assert len(cells) == 6
    assert all(cell["figures"]["speedup"] for cell in cells)


@pytest.mark.slow
def test_benchmark_of_the_data(tmp_path):
    cwd = workspace(tmp_path)
    few = ["train_dataloader.dataset.num_images.train=20", "train_dataloader.batch_size=2"]
    printed = run(manual.BENCHMARK_DATA, cwd, "--rounds", "2", "--cfg-options", *few)
    assert "The model limits" in printed or "The data limit" in printed
    names = {path.name for path in (cwd / "outputs" / "feeding").iterdir()}
    assert names == {"results.json", "table.md"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_exports(run_here, tmp_path, monkeypatch, capsys):
    """The quickstarts' models with random weights, in each form, and what reads them."""
    segmentor, detector, *others = manual.EXPORTS
    save_random_weights(*segmentor.split()[2:3], tmp_path / segmentor.split()[3])
    config, checkpoint = detector.split()[2:4]
    save_finding_detector(config, tmp_path / checkpoint)
    images = tmp_path / "data" / "shapes" / "val" / "images"
    images.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    cv2.imwrite(str(images / "000000.jpg"), noise)
    assert run_here(segmentor).count("labels equal") == 3
    for command in (detector, *others):
        assert "written to" in run_here(command)
    small = images / "000000.jpg"
    pixels = cv2.cvtColor(cv2.imread(str(small)), cv2.COLOR_BGR2RGB)[:90]
    for own, other in zip(
        OnnxRunner(tmp_path / "detector.onnx")([small, pixels]),
        Predictor(config, tmp_path / checkpoint, "cpu")([small, pixels]),
        strict=True,
    ):
        assert 0 < len(own) == len(other)
        np.testing.assert_allclose(own.scores, other.scores, atol=1e-4)
        same = (own.labels == other.labels) & (np.abs(own.boxes - other.boxes) < 0.01).all(1)
        assert same.mean() > 0.9  # Others have a twin in the score.
        assert (own.bitmaps()[same] == other.bitmaps()[same]).mean() > 0.999
    with_runner, with_openvino, own_script, with_torch, _ = manual.PYTHON["export"]
    for block, printed in (
        (with_runner, "(128, 128) ('background', "),
        (with_openvino, "(2, 7, 32, 40)"),
        (with_torch, "[2, 128, 160]"),
        (own_script, ""),
    ):
        exec(block, {})
        assert printed in capsys.readouterr().out
    written = {
        "detector.onnx",
        "segmentor.onnx",
        "segmentor-int8.onnx",
        "backbone.onnx",
        "segmentor.pt2",
        "own.onnx",
    }
    assert written | {"segmented.jpg"} <= {path.name for path in tmp_path.iterdir()}


def test_flops(run_here):
    assert "11.64 M parameters, 41.57 G multiply-adds" in run_here(manual.FLOPS)


@pytest.mark.slow
def test_tests_of_a_card():
    """They pass on a card, and are skipped without one."""
    words = [*shlex.split(manual.ON_GPU.removeprefix("uv run ")), "-n", "0", "tests/test_gpu.py"]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d+ (passed|skipped)", done.stdout)


@pytest.mark.slow
def test_flops_of_the_paper(tmp_path):
    """Its own style of counting is within 1 % of all figures but one."""
    cwd = workspace(tmp_path)
    printed = run(manual.FLOPS_OF_PAPER, cwd, "--json", "rows.json")
    rows = json.loads((cwd / "rows.json").read_text())
    assert len(rows) == 14
    for row in rows:
        published, explanation = row["published"], row["explanation"]
        least = 0.94 if row["model"] == "FLatten-PVT-T, Semantic FPN" else 0.99
        assert least < row["paper_style"]["multiply_adds"] / published["multiply_adds"] < 1.01
        assert row["parameters"] == pytest.approx(published["parameters"], abs=0.9e6)
        difference = row["multiply_adds"] / published["multiply_adds"] - 1
        assert (explanation is not None) == (abs(difference) > 0.03) == ("-PVT" in row["model"])
        assert explanation is None or explanation in printed


@pytest.mark.slow
@pytest.mark.parametrize("command", manual.ANALYSE)
def test_analysis(command, tmp_path):
    """With random weights, of one small image."""
    cwd = workspace(tmp_path)
    folder = cwd / "data" / "shapes" / "val" / "images"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "0.png"), np.eye(64, dtype=np.uint8) * 255)
    words = command.split()
    if "--model" not in words:
        save_random_weights(words[2], cwd / words[3])
    assert "the matrices give what the layers do" in run(command, cwd)
    out = cwd / words[words.index("--out-dir") + 1]
    assert {path.name for path in out.iterdir()} == {"0", "analysis.json", "statistics.png"}
    assert {path.name for path in (out / "0").iterdir()} == {"maps_head0_point1.png", "spectra.png"}


@pytest.mark.slow
def test_updating_the_zoo_finds_nothing_to_change(tmp_path):
    """In a part of this checkout; all of it is counted by the zoo's own test."""
    root = make_small_zoo(tmp_path / "checkout")
    assert "0 differences" in run(manual.UPDATE_ZOO, ROOT, "--root", str(root))


@pytest.mark.slow
def test_install_beside_the_packages_that_are_there(tmp_path):
    """Into an environment with mmcv and the rest, without their being touched."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    (site / "openmmlab.pth").write_text(sysconfig.get_path("purelib"))
    for step in manual.INSTALL.split(" && "):
        subprocess.run(
            [str(python), "-m", *step.split()], cwd=ROOT, check=True, capture_output=True
        )
    code = (
        "import mmcv.ops, flatten_det, mmdet.apis, mmseg.apis, sys;"
        "print(flatten_det.__file__, mmcv._ext.__file__, mmcv.__file__, sep='\\n')"
    )
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, ext, theirs = done.stdout.splitlines()[-3:]
    assert Path(ours).is_relative_to(site)
    assert Path(ext).is_relative_to(site)
    assert not Path(theirs).is_relative_to(site)
