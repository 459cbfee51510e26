"""tools/test.py: metrics, dumps, pictures, TTA, and one-line errors."""

import json
import pickle
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixtures import write_pure_python_config
from graph_recorder import CpuRecorder
from rich.console import Console

from flatten_det.backbones import cuda
from flatten_det.train import console


def printed_metrics(capsys) -> dict[str, float]:
    """The table after the log: one name and value a line."""
    return metrics_in(capsys.readouterr().out)


def metrics_in(printed: str) -> dict[str, float]:
    pairs = re.findall(r"^(\S+) +(-?\d+\.\d{4})$", printed, re.MULTILINE)
    return {name: float(value) for name, value in pairs}


@pytest.fixture
def run(test_tool, tmp_path):
    def run(trained, *options: str) -> int:
        common = [str(trained.config), str(trained.checkpoint), "--work-dir", str(tmp_path / "run")]
        return test_tool.main([*common, *options])

    return run


def test_segmentor_reproduces_the_last_validation(run, trained_segmentor, tmp_path, capsys):
    maps, pictures = tmp_path / "maps", tmp_path / "pictures"
    assert run(trained_segmentor, "--out", str(maps), "--show-dir", str(pictures)) == 0
    metrics = printed_metrics(capsys)
    for name in ("aAcc", "mIoU", "mAcc"):
        assert metrics[name] == pytest.approx(trained_segmentor.metrics[name], abs=1e-3)
    names = [f"ADE_val_{number:08d}" for number in (1, 2, 3)]
    assert sorted(path.name for path in maps.iterdir()) == [f"{name}.png" for name in names]
    assert cv2.imread(str(maps / "ADE_val_00000001.png"), -1).shape == (61, 97)
    assert sorted(path.name for path in pictures.iterdir()) == [f"{name}.jpg" for name in names]


def test_detector_dumps_and_draws(run, trained_detector, coco_folder, tmp_path, capsys):
    dump, pictures = tmp_path / "predictions.pkl", tmp_path / "pictures"
    assert run(trained_detector, "--out", str(dump), "--show-dir", str(pictures)) == 0
    assert "coco/bbox_mAP" in capsys.readouterr().out
    predictions = pickle.loads(dump.read_bytes())
    assert [prediction["img_id"] for prediction in predictions] == [1, 2, 3]
    assert predictions[0]["pred_instances"]["masks"][0]["size"] == [61, 97]
    for number in (1, 2, 3):
        drawn = cv2.imread(str(pictures / f"{number:012d}.jpg"))
        assert drawn is not None


def test_console_shows_what_matters_and_the_log_has_all(run, trained_detector, tmp_path, capsys):
    assert run(trained_detector, "--out", str(tmp_path / "all.pkl")) == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("[1/3]"))
    assert first <= 15
    facts = dict(line.split(maxsplit=1) for line in lines[:first])
    assert facts["weights"] == str(trained_detector.checkpoint)
    assert facts["test"] == "CocoDataset: 3 images, 80 classes, batches of 1"
    assert facts["metrics"] == "CocoMetric"
    for number, line in enumerate(lines[first : first + 3], start=1):
        ending = "computing metrics" if number == 3 else r"eta \d:\d\d:\d\d"
        assert re.fullmatch(rf"\[{number}/3\]  [\d.]+ images/s  {ending}", line)
    assert all(re.fullmatch(r"coco/\S+ +-?\d\.\d{4}", line) for line in lines[first + 3 : -1])
    assert lines[-1].split() == ["predictions", str(tmp_path / "all.pkl")]
    log = Path(facts["log"]).read_text()
    for part in ("System environment", "Config:\n", "Load checkpoint", "Average Precision"):
        assert part in log
    assert re.search(r"Epoch\(test\) +\[3/3\] +coco/bbox_mAP", log)


def test_console_shows_one_line_for_each_interval(run, trained_detector, capsys):
    assert run(trained_detector, "--cfg-options", "default_hooks.logger.interval=2") == 0
    assert re.findall(r"^\[\d/3\]", capsys.readouterr().out, re.MULTILINE) == ["[2/3]", "[3/3]"]


def test_console_on_a_terminal_has_one_line_of_progress(run, trained_detector, monkeypatch, capsys):
    terminal = Console(force_terminal=True, width=150, color_system=None)
    monkeypatch.setattr(console, "make_console", lambda: terminal)
    assert run(trained_detector) == 0
    printed = capsys.readouterr().out
    assert "[1/3]" not in printed
    assert re.search(r"test ━+ 3/3 [\d.]+ images/s +computing metrics", printed)


def test_console_shows_the_metrics_of_single_classes(
    run, trained_detector, trained_segmentor, capsys
):
    assert run(trained_detector, "--cfg-options", "test_evaluator.classwise=True") == 0
    printed = capsys.readouterr().out
    for kind in ("bbox", "segm"):
        assert re.search(
            rf"^Evaluating {kind}\.\.\.\n\+-.*\n\| category +\| mAP ", printed, re.MULTILINE
        )
    assert "person_precision" not in printed
    assert "coco/segm_mAP " in printed
    assert run(trained_segmentor) == 0
    assert re.search(r"^\| +wall +\|", capsys.readouterr().out, re.MULTILINE)


def test_verbose_prints_the_log(run, trained_detector, capsys):
    assert run(trained_detector, "--verbose") == 0
    printed = capsys.readouterr().out
    assert "System environment" in printed
    assert re.search(r"Epoch\(test\) \[3/3\]", printed)


@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_tta(run, kind, request, tmp_path, capsys):
    """Also where the config names classes."""
    trained = request.getfixturevalue(f"trained_{kind}")
    config = write_pure_python_config(tmp_path / "pure.py", trained.config)
    assert (
        run(trained._replace(config=config), "--tta", "--show-dir", str(tmp_path / "pictures")) == 0
    )
    assert {"detector": "coco/segm_mAP", "segmentor": "mIoU"}[kind] in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_tiles_and_views_exclude_each_other(run, trained_detector, capsys):
    with pytest.raises(SystemExit):
        run(trained_detector, "--tta", "--tile", "64")
    assert "--tile: test-time augmentation (--tta)" in capsys.readouterr().err


def test_cuda_graphs(run, random_segmentor, monkeypatch, capsys):
    """Of three images of one size the second is captured."""
    monkeypatch.setattr(cuda, "Recorder", CpuRecorder)
    before = CpuRecorder.replayed
    of_one_size = ["--cfg-options", "test_dataloader.dataset.pipeline.1.keep_ratio=False"]
    assert run(random_segmentor, "--cuda-graphs", *of_one_size) == 0
    assert CpuRecorder.replayed == before + 2
    assert printed_metrics(capsys)["aAcc"] >= 0


def test_one_channel(run, one_channel, tmp_path):
    """Test-time augmentation changes no more than pixels close to the threshold."""
    maps = []
    for options in ([], ["--tta"]):
        out = tmp_path / f"maps{len(maps)}"
        pictures = tmp_path / f"pictures{len(maps)}"
        assert run(one_channel, "--out", str(out), "--show-dir", str(pictures), *options) == 0
        maps.append(cv2.imread(str(out / "ADE_val_00000002.png"), -1))
        assert len(list(pictures.iterdir())) == 3
    labels = [set(np.unique(each)) for each in maps]
    assert labels == [{1, 2}, {1, 2}]  # 0 is ADE20K's "not labelled"
    assert (maps[0] == maps[1]).mean() > 0.7


def test_tta_of_joined_data_sets(run, trained_detector, tmp_path, capsys):
    joined = tmp_path / "joined.py"
    joined.write_text(
        f"_base_ = {str(trained_detector.config)!r}\n"
        "_one = _base_.test_dataloader.dataset\n"
        "test_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=["
        "dict(_one, indices=[0]), dict(type='RepeatDataset', times=1, dataset=dict(_one, indices=[1, 2]))]))"
    )
    metrics = []
    for each in (trained_detector, trained_detector._replace(config=joined)):
        assert run(each, "--tta") == 0
        metrics.append(printed_metrics(capsys))
    assert metrics[0] == metrics[1]


BROKEN = {
    "detector": "val2017/000000000002.jpg",
    "segmentor": "images/validation/ADE_val_00000002.jpg",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_image_is_left_out_and_named(run, kind, request, tmp_path, capsys):
    """The metrics are those of the others, and say so."""
    trained = request.getfixturevalue(f"trained_{kind}")
    folder = request.getfixturevalue(
        {"detector": "coco_folder", "segmentor": "ade20k_folder"}[kind]
    )
    metrics = []
    for name in ("broken", "without"):
        data = shutil.copytree(folder, tmp_path / name)
        config = tmp_path / f"{name}.py"
        config.write_text(trained.config.read_text().replace(str(folder), str(data)))
        image = data / BROKEN[kind]
        if name == "broken":
            image.write_bytes(b"no image")
            assert run(trained._replace(config=config), "--show-dir", str(tmp_path / "drawn")) == 2
            captured = capsys.readouterr()
            reason = f"image {image} cannot be decoded"
            assert f"error: 1 of 3 images, without which the metrics are: {reason}" in captured.err
            printed = captured.out
        else:
            image.unlink()
            if kind == "detector":
                file = data / "annotations" / "instances_val2017.json"
                content = json.loads(file.read_text())
                content["images"] = [each for each in content["images"] if each["id"] != 2]
                content["annotations"] = [
                    each for each in content["annotations"] if each["image_id"] != 2
                ]
                file.write_text(json.dumps(content))
            assert run(trained._replace(config=config)) == 0
            printed = capsys.readouterr().out
        metrics.append(metrics_in(printed))
    assert metrics[0].pop("unreadable_images") == 1
    assert metrics[0] == metrics[1]
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_no_image_can_be_read(run, trained_segmentor, ade20k_folder, tmp_path, capsys):
    config = tmp_path / "none.py"
    config.write_text(
        trained_segmentor.config.read_text().replace(str(ade20k_folder), str(tmp_path))
    )
    for number in (1, 2, 3):
        for kind in ("images", "annotations"):
            file = tmp_path / kind / "validation" / f"ADE_val_{number:08d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"")
    assert run(trained_segmentor._replace(config=config)) == 2
    assert "error: 3 of 3 images: image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["test_dataloader.persistent_workers=True"],
            "persistent_workers option needs num_workers > 0",
        ),
        (["model.backbone.foo=1"], "unexpected keyword argument 'foo'"),
        (["model.backbone.foo=1", "--tta"], "unexpected keyword argument 'foo'"),
        (["test_dataloader=None", "--tta"], "has no attribute 'dataset'"),
        (["test_dataloader.dataset.pipeline.1.scale=None"], "can not both be `None`"),
        (["test_evaluator.metric=foo"], "but got foo"),
        (["model.test_cfg.rcnn.nms=3"], "'int' object has no attribute"),
        (["model.backbone.foo=1", "infer"], "unexpected keyword argument 'foo'"),
        (["test_dataloader=None", "infer"], "has no attribute 'dataset'"),
        (["test_dataloader.dataset.pipeline.1.scale=None", "infer"], "can not both be `None`"),
        (["model.test_cfg.rcnn.nms=3", "infer"], "'int' object has no attribute"),
    ],
)
def test_config_that_cannot_be_built(
    run, run_infer, trained_detector, coco_folder, capsys, options, reason
):
    if options[-1] == "infer":
        arguments = [trained_detector.checkpoint, coco_folder / "val2017"]
        options = ["--cfg-options", *options[:-1]]
        assert run_infer(trained_detector.config, *arguments, *options) == 2
    else:
        assert run(trained_detector, "--cfg-options", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    about = f"error: config file {trained_detector.config}: what it says cannot be built: "
    assert error.startswith(about)
    assert reason in error


def test_checkpoints_that_are_none(run, trained_detector, trained_segmentor, tmp_path, capsys):
    """One is not there, one is cut off, and one is of another model: of this, what fits is not named."""
    half = tmp_path / "half.pth"
    half.write_bytes(trained_detector.checkpoint.read_bytes()[:5000])
    for path, reason in (
        (tmp_path / "no-such.pth", "not found"),
        (half, "cannot be read"),
        (trained_segmentor.checkpoint, "does not fit the config"),
    ):
        assert run(trained_detector._replace(checkpoint=path)) == 2
        error = capsys.readouterr().err
        assert f"error: checkpoint {path} {reason}" in error
    assert "neck.lateral_convs.0.conv.bias" not in error


def test_out_of_the_wrong_kind(run, trained_detector, trained_segmentor, tmp_path, capsys):
    assert run(trained_detector, "--out", str(tmp_path / "folder")) == 2
    assert "give a file that ends in .pkl" in capsys.readouterr().err
    file = tmp_path / "file.pkl"
    np.save(file.open("wb"), np.zeros(1))
    assert run(trained_segmentor, "--out", str(file)) == 2
    assert "for segmentation give a folder" in capsys.readouterr().err
