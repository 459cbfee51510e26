"""tools/test.py: metrics, dumps, pictures, TTA, and one-line errors."""

import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from graph_recorder import CpuRecorder

from flatten_det.backbones import cuda_graphs


def printed_metrics(capsys) -> dict[str, float]:
    """The table after the log: one name and value a line."""
    pairs = re.findall(r"^(\S+) +(-?\d+\.\d{4})$", capsys.readouterr().out, re.MULTILINE)
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


@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_tta(run, kind, request, tmp_path, capsys):
    trained = request.getfixturevalue(f"trained_{kind}")
    assert run(trained, "--tta", "--show-dir", str(tmp_path / "pictures")) == 0
    assert {"detector": "coco/segm_mAP", "segmentor": "mIoU"}[kind] in capsys.readouterr().out
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_cuda_graphs(run, random_segmentor, monkeypatch, capsys):
    """Of three images of one size the second is captured."""
    monkeypatch.setattr(cuda_graphs, "Recorder", CpuRecorder)
    before = CpuRecorder.replayed
    of_one_size = ["--cfg-options", "test_dataloader.dataset.pipeline.1.keep_ratio=False"]
    assert run(random_segmentor, "--cuda-graphs", *of_one_size) == 0
    assert CpuRecorder.replayed == before + 2
    assert printed_metrics(capsys)["aAcc"] >= 0


def test_tta_without_a_recipe_for_segmentation(run, trained_segmentor, tmp_path, capsys):
    text = trained_segmentor.config.read_text()
    own = tmp_path / "no-recipe.py"
    own.write_text(text + "\ntta_pipeline = None\ntta_model = None\n")
    assert run(trained_segmentor._replace(config=own), "--tta") == 0
    assert printed_metrics(capsys)["aAcc"] > 0


def test_missing_checkpoint(run, trained_detector, tmp_path, capsys):
    path = tmp_path / "no-such.pth"
    assert run(trained_detector._replace(checkpoint=path)) == 2
    assert f"error: checkpoint {path} not found" in capsys.readouterr().err


def test_checkpoint_of_another_model(run, trained_detector, trained_segmentor, capsys):
    path = trained_segmentor.checkpoint
    assert run(trained_detector._replace(checkpoint=path)) == 2
    error = capsys.readouterr().err
    assert f"error: checkpoint {path} does not fit the config" in error
    assert "neck.lateral_convs.0.conv.bias" not in error  # it fits: only what does not is named


def test_damaged_checkpoint(run, trained_detector, tmp_path, capsys):
    path = tmp_path / "half.pth"
    path.write_bytes(trained_detector.checkpoint.read_bytes()[:5000])
    assert run(trained_detector._replace(checkpoint=path)) == 2
    assert f"error: checkpoint {path} cannot be read" in capsys.readouterr().err


def test_checkpoint_with_code_is_refused(run, trained_detector, tmp_path, capsys):
    trap = tmp_path / "trap"

    class Payload:
        def __reduce__(self):
            return Path.touch, (trap,)

    path = tmp_path / "payload.pth"
    torch.save({"state_dict": {}, "payload": Payload()}, path)
    assert run(trained_detector._replace(checkpoint=path)) == 2
    assert f"error: checkpoint {path} cannot be read" in capsys.readouterr().err
    assert not trap.exists()


def test_out_of_the_wrong_kind(run, trained_detector, trained_segmentor, tmp_path, capsys):
    assert run(trained_detector, "--out", str(tmp_path / "folder")) == 2
    assert "give a file that ends in .pkl" in capsys.readouterr().err
    file = tmp_path / "file.pkl"
    np.save(file.open("wb"), np.zeros(1))
    assert run(trained_segmentor, "--out", str(file)) == 2
    assert "for segmentation give a folder" in capsys.readouterr().err
