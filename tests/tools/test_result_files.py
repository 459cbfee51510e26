"""Results of all tools: on a full disk, and in the place of what they are made of."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from custom_folder import make_custom_folder
from tool_modules import load_tool
from zoo_fixture import FLATTEN, make_small_zoo

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "configs" / "quickstart"
CUSTOM = ["custom", "--config", str(QUICKSTART / "mask-rcnn_flatten-pvt-nano_fpn_shapes.py")]
ANALYSIS = ["--model", "flatten-pvt-t", "--size", "64", "64", "--layers", "4", "--no-spectra"]
TIMES = ["--rounds", "1", "--warmup", "0", "--no-memory", "--device", "cpu"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_pictures(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 60, 3), 40 * number, np.uint8))


@pytest.fixture
def commands(request, coco_folder, tmp_path):
    """A command line of each tool that writes into ``out``."""
    out = tmp_path / "out"

    def tested(trained, *options) -> list[object]:
        return ["test", trained.config, trained.checkpoint, "--work-dir", tmp_path / "w", *options]

    def command(name: str) -> list[object]:
        if name == "update_zoo":
            make_small_zoo(out)
            path = out / FLATTEN
            path.write_text(f"{path.read_text()}train_cfg = dict(max_epochs=24)\n")
            return [name, "--root", out, "--no-count"]
        if name == "prepare_data":
            data = make_custom_folder(tmp_path / "data")
            return [name, *CUSTOM, data, "--out", out / "my.py", "--val-fraction", "0.5"]
        if name == "analyze_attention":
            write_pictures(tmp_path / "photos", "a.png")
            return [name, *ANALYSIS, tmp_path / "photos", "--out-dir", out]
        if name == "benchmark_attention":
            options = ["--shape", "32,2,8,8", "--candidates", "eager", "--mode", "forward"]
            return [name, *options, *TIMES, "--out", out]
        if name == "get_flops":
            return [name, "flatten-pvt-t", "--json", out / "a.json"]
        detector = request.getfixturevalue("trained_detector")
        if name == "check_data":
            return [name, detector.config, "--workers", "0", "--json", out / "a.json"]
        if name == "infer":
            options = ["--device", "cpu", "--out-dir", out]
            return [name, detector.config, detector.checkpoint, coco_folder / "val2017", *options]
        if name == "test --out FILE":
            return tested(detector, "--out", out / "a.pkl")
        if name == "test --show-dir":
            return tested(detector, "--show-dir", out)
        return tested(request.getfixturevalue("trained_segmentor"), "--out", out)

    return command


@pytest.mark.parametrize(
    "name",
    [
        "test --out FILE",
        "test --out DIR",
        "test --show-dir",
        "infer",
        "check_data",
        "get_flops",
        "analyze_attention",
        "prepare_data",
        "benchmark_attention",
        "update_zoo",
    ],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    name, commands, tmp_path, capsys, full_disk
):
    tool, *arguments = map(str, commands(name))
    out = tmp_path / "out"
    before = contents(out)
    full_disk(out)
    assert load_tool(tool).main(arguments) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: cannot write {out}")
    assert "the disk is full: it takes " in line
    assert contents(out) == before
    # What was computed is shown all the same.
    shown = {"test --out FILE": "coco/bbox_mAP", "check_data": "image", "get_flops": "M parameters"}
    assert shown.get(name, "") in printed.out


def refused(tool: str, arguments: list[object], folder: Path, capsys) -> None:
    """The tool says so in one line, and everything in a folder stays as it is."""
    before = contents(folder)
    assert load_tool(tool).main(list(map(str, arguments))) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert "would overwrite the input" in line
    assert contents(folder) == before


def test_infer_does_not_overwrite_its_inputs(trained_detector, tmp_path, capsys):
    photos = tmp_path / "photos"
    config = [trained_detector.config, trained_detector.checkpoint, "--device", "cpu"]
    write_pictures(photos, "vis/a.jpg", "vis/b.jpg", "preds/a.png")
    (tmp_path / "link").symlink_to(photos)
    for inputs, out in (
        ([photos / "vis"], photos),
        ([photos / "preds"], photos),
        ([tmp_path / "link" / "vis"], photos),
        ([photos / "vis" / "b.jpg"], tmp_path / "link"),
    ):
        refused("infer", [*config, *inputs, "--out-dir", out], photos, capsys)


def test_infer_keeps_results_of_equal_names_apart(trained_segmentor, tmp_path):
    names = ["a/x.png", "b/x.png", "b/x.jpg", "b/X.jpg", "..jpg"]
    write_pictures(tmp_path / "photos", *names)
    options = ["--out-dir", str(tmp_path / "out"), "--device", "cpu"]
    inputs = [str(tmp_path / "photos" / name) for name in names]
    config, checkpoint = map(str, (trained_segmentor.config, trained_segmentor.checkpoint))
    assert load_tool("infer").main([config, checkpoint, *inputs, *options]) == 0
    results = ["a/x", "b/x.png", "b/x.jpg", "b/X.jpg_", "..jpg"]
    for path, result in zip(inputs, results, strict=True):
        found = tmp_path / "out" / "preds" / f"{result}.json"
        assert json.loads(found.read_text())["image"] == path
        assert found.with_suffix(".png").exists()
        assert (tmp_path / "out" / "vis" / f"{result}.jpg").exists()


@pytest.fixture
def two_folders(ade20k_folder, tmp_path) -> Path:
    """Of which the validation has equally named images."""
    data = tmp_path / "data"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        sources = sorted((ade20k_folder / kind / "validation").iterdir())
        for folder, source in zip("ab", sources, strict=False):
            target = data / kind / "validation" / folder / f"x{suffix}"
            target.parent.mkdir(parents=True)
            shutil.copy(source, target)
    return data


def test_label_maps_of_equally_named_images(trained_segmentor, two_folders, tmp_path):
    out = tmp_path / "maps"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = [trained_segmentor.config, trained_segmentor.checkpoint, "--work-dir", tmp_path / "w"]
    options = ["--out", out, "--cfg-options", f"test_dataloader.dataset.data_root={two_folders}"]
    assert load_tool("test").main(list(map(str, [*command, *options]))) == 0
    files = {path.relative_to(out).as_posix() for path in contents(out)}
    assert files == {"a/x.png", "b/x.png", "notes.txt"}
    for name in ("a/x", "b/x"):
        size = cv2.imread(str(two_folders / "images" / "validation" / f"{name}.jpg")).shape[:2]
        labels = cv2.imread(str(out / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert labels.shape == size
        # 0 is for what is not labelled.
        assert 1 <= labels.min() <= labels.max() <= 150


@pytest.mark.parametrize(("option", "folder"), [("--out", "annotations"), ("--show-dir", "images")])
def test_a_test_does_not_overwrite_its_data(
    trained_segmentor, two_folders, tmp_path, capsys, option, folder
):
    command = [trained_segmentor.config, trained_segmentor.checkpoint, "--work-dir", tmp_path / "w"]
    options = [option, two_folders / folder / "validation"]
    root = ["--cfg-options", f"test_dataloader.dataset.data_root={two_folders}"]
    refused("test", [*command, *options, *root], two_folders, capsys)


def test_files_named_by_the_user_are_not_replaced_by_what_is_said_of_them(
    coco_folder, trained_detector, tmp_path, capsys
):
    data = shutil.copytree(coco_folder, tmp_path / "data")
    config = tmp_path / "a.py"
    root = f"data_root={data}/"
    config.write_text(trained_detector.config.read_text())
    options = ["--workers", "0", "--cfg-options", f"train_dataloader.dataset.{root}"]
    annotations = data / "annotations" / "instances_train2017.json"
    refused("check_data", [config, "--json", annotations, *options], tmp_path, capsys)
    refused("check_data", [config, "--json", config, *options], tmp_path, capsys)
    refused("get_flops", [config, "--json", config], tmp_path, capsys)


def test_an_analysis_does_not_overwrite_its_images(tmp_path, capsys):
    out = tmp_path / "out"
    for name in ("statistics.png", "a/maps_head0_point1.png"):
        write_pictures(out, name, "a.png")
        command = [*ANALYSIS, out / "a.png", out / name, "--out-dir", out]
        refused("analyze_attention", command, out, capsys)


def test_a_divided_file_does_not_replace_its_source(tmp_path, capsys):
    data = make_custom_folder(tmp_path / "data")
    source = next(data.glob("train/*.json")).rename(data / "my_train.json")
    names = ["--train-ann", source, "--train-images", data / "train"]
    command = [*CUSTOM, data, *names, "--out", data / "my.py", "--val-fraction", "0.5", "--force"]
    refused("prepare_data", command, data, capsys)


def test_a_training_in_the_folder_of_its_config(trained_detector, tmp_path, monkeypatch):
    """It leaves the config alone, and what others have there."""
    config = shutil.copy(trained_detector.config, tmp_path / "mine.py")
    mine = tmp_path / "film.partial"
    mine.write_bytes(b"half")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert load_tool("train").main([config.name, "--work-dir", "."]) == 0
    assert contents(tmp_path).items() >= before.items()
    assert (tmp_path / "mine_dumped.py").exists()
