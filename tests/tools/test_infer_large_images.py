"""tools/infer.py on images larger than a test pipeline's size."""

import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmseg.models.segmentors import EncoderDecoder
from pycocotools import mask as coco_mask
from torch import nn

from flatten_det.predict.segmentation import predict_in_bands_when_large

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 300, 420
SEMANTIC_FPN = "configs/semantic_fpn/flatten-pvt-t_semantic-fpn_4xb4-80k_ade20k-512x512.py"
PANOPTIC = ROOT / "configs/mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic.py"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT // 20, WIDTH // 20, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    return path


def label_map(folder) -> np.ndarray:
    return cv2.imread(str(folder / "out" / "preds" / "picture.png"), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def input_sizes(monkeypatch) -> list[tuple[int, int]]:
    """The size of each image that a segmentor is given."""
    sizes = []
    predict = EncoderDecoder.predict

    def note(model, inputs, data_samples=None):
        sizes.extend(tuple(image.shape[1:]) for image in inputs)
        return predict(model, inputs, data_samples)

    monkeypatch.setattr(EncoderDecoder, "predict", note)
    return sizes


def test_full_size_segmentation(run_infer, trained_segmentor, picture, tmp_path, input_sizes):
    for options in ([], ["--full-size"]):
        arguments = [trained_segmentor.checkpoint, picture, *options]
        assert run_infer(trained_segmentor.config, *arguments) == 0
        assert label_map(tmp_path).shape == (HEIGHT, WIDTH)
    assert input_sizes == [(64, 90), (HEIGHT, WIDTH)]


@pytest.fixture
def bands_always(monkeypatch) -> list[bool]:
    """Small images in bands, too; lists for each model whether it takes them so."""
    banded = []

    def always(model: nn.Module) -> None:
        predict_in_bands_when_large(model, limit=0)
        banded.append("predict" in vars(model))

    for user in ("predict.engine", "predict.segmentation"):
        monkeypatch.setattr(f"flatten_det.{user}.predict_in_bands_when_large", always)
    return banded


@pytest.mark.parametrize("options", [[], ["--full-size"]])
def test_in_bands(run_infer, trained_segmentor, picture, tmp_path, request, options):
    arguments = [trained_segmentor.config, trained_segmentor.checkpoint, picture, *options]
    assert run_infer(*arguments) == 0
    whole = label_map(tmp_path)
    banded = request.getfixturevalue("bands_always")
    assert run_infer(*arguments) == 0
    assert banded == [True]
    assert (whole != label_map(tmp_path)).mean() < 1e-4


def test_evaluation_in_bands(test_tool, trained_segmentor, bands_always, tmp_path, capsys):
    arguments = [str(trained_segmentor.config), str(trained_segmentor.checkpoint)]
    assert test_tool.main([*arguments, "--work-dir", str(tmp_path / "run")]) == 0
    assert bands_always == [True]
    printed = dict(re.findall(r"^(\w+) +(\d+\.\d{4})$", capsys.readouterr().out, re.MULTILINE))
    for name in ("aAcc", "mIoU", "mAcc"):
        assert float(printed[name]) == pytest.approx(trained_segmentor.metrics[name], abs=1e-2)


MEASURE = """
import runpy, sys
from pathlib import Path
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(Path("/proc/self/status").read_text())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_the_whole_process(tmp_path):
    """A quarter of 8192 x 4096, for which 9.2 GiB were measured; logits would take 5 GB a copy."""
    image = tmp_path / "image.jpg"
    cv2.imwrite(str(image), np.zeros((2048, 4096, 3), np.uint8))
    command = ["tools/infer.py", SEMANTIC_FPN, str(image), "--full-size", "--device", "cpu"]
    options = ["--out-dir", str(tmp_path), "--cfg-options", "model.backbone.init_cfg=None"]
    code = MEASURE.replace("sys.argv[0]", repr(command[0]))
    done = subprocess.run(
        [sys.executable, "-c", code, *command[1:], *options],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    peak = int(re.search(r"^VmHWM:\s+(\d+) kB$", done.stdout, re.MULTILINE)[1]) / 2**20
    assert peak < 4
    assert cv2.imread(str(tmp_path / "preds" / "image.png"), -1).shape == (2048, 4096)


def test_full_size_detection(run_infer, trained_detector, picture, told):
    arguments = [trained_detector.checkpoint, picture, "--score-thr", 0]
    assert run_infer(trained_detector.config, *arguments) == 0
    small = told("picture")
    assert run_infer(trained_detector.config, *arguments, "--full-size") == 0
    assert told("picture")["bboxes"] != small["bboxes"]


@pytest.mark.parametrize("options", [[], ["--tile-overlap", 0.5, "--full-size", "--batch-size", 4]])
def test_tiles(run_infer, trained_detector, picture, told, tmp_path, capsys, options):
    arguments = [trained_detector.checkpoint, picture, "--score-thr", 0, "--tile", 128, *options]
    assert run_infer(trained_detector.config, *arguments) == 0
    assert "Tiles of image" in capsys.readouterr().out
    content = told("picture")
    # As many as the config allows for one picture, of hundreds in the tiles.
    assert len(content["scores"]) == 10
    boxes = np.array(content["bboxes"])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (WIDTH, HEIGHT)).all()
    assert (boxes[:, 2:] > 128).any()
    masks = coco_mask.decode(content["masks"])
    assert masks.shape == (HEIGHT, WIDTH, 10)
    assert cv2.imread(str(tmp_path / "out" / "vis" / "picture.jpg")).shape == (
        2 * HEIGHT,
        2 * WIDTH,
        3,
    )


def test_tiles_are_for_detectors(run_infer, trained_segmentor, picture, capsys):
    assert run_infer(trained_segmentor.config, picture, "--tile", 128) == 2
    error = capsys.readouterr().err
    assert "error: --tile is for detectors: a segmentor takes large images as a whole" in error


def test_not_for_panoptic_models(run_infer, picture, capsys):
    small = ["--cfg-options", "model.backbone.init_cfg=None"]
    assert run_infer(PANOPTIC, picture, "--tile", 128, *small) == 2
    assert "error: --tile merges boxes and instance masks, not" in capsys.readouterr().err
