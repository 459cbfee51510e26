"""tools/infer.py: inputs, pictures, JSON and label maps, and one-line errors."""

import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from fixtures import write_pure_python_config
from graph_recorder import CpuRecorder
from malicious_files import served
from mmdet.datasets import CocoDataset
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flatten_det.backbones import cuda


@pytest.fixture
def run(run_infer):
    return lambda trained, *arguments: run_infer(trained.config, *arguments)


def test_detector(run, told, trained_detector, coco_folder, tmp_path, capsys):
    images = coco_folder / "val2017"
    arguments = [trained_detector.checkpoint, images, "--score-thr", 0, "--batch-size", 2]
    assert run(trained_detector, *arguments) == 0
    assert "3 images: pictures in" in capsys.readouterr().out
    for number, (height, width) in enumerate([(61, 97), (97, 61), (50, 75)], start=1):
        name = f"{number:012d}"
        found = told(name)
        assert found["image"] == str(images / f"{name}.jpg")
        assert (found["height"], found["width"]) == (height, width)
        count = len(found["scores"])
        assert count > 0
        for key in ("labels", "class_names", "bboxes", "masks"):
            assert len(found[key]) == count
        for box in found["bboxes"]:
            assert 0 <= box[0] <= box[2] <= width
            assert 0 <= box[1] <= box[3] <= height
        for mask in found["masks"]:
            assert coco_mask.decode(mask).shape == (height, width)
        assert cv2.imread(str(tmp_path / "out" / "vis" / f"{name}.jpg")) is not None


def test_score_threshold(run, told, trained_detector, coco_folder):
    image = coco_folder / "val2017" / f"{1:012d}.jpg"
    assert run(trained_detector, trained_detector.checkpoint, image, "--score-thr", 1) == 0
    found = told(f"{1:012d}")
    assert found["scores"] == []
    assert found["masks"] == []


def test_batches_do_not_change_a_segmentation(run, trained_segmentor, ade20k_folder, tmp_path):
    images = ade20k_folder / "images" / "training"
    maps = []
    for batch_size in (1, 4):
        arguments = [trained_segmentor.checkpoint, images, "--batch-size", batch_size]
        assert run(trained_segmentor, *arguments) == 0
        folder = tmp_path / "out" / "preds"
        maps.append([cv2.imread(str(path), -1) for path in sorted(folder.glob("*.png"))])
        shutil.rmtree(tmp_path / "out")
    assert [each.shape for each in maps[0][:2]] == [(61, 97), (97, 61)]
    for one, many in zip(*maps, strict=True):
        np.testing.assert_array_equal(one, many)


def test_segmentor(run, told, trained_segmentor, ade20k_folder, tmp_path):
    image = ade20k_folder / "images" / "training" / "ADE_train_00000001.jpg"
    assert run(trained_segmentor, trained_segmentor.checkpoint, image) == 0
    found = told("ADE_train_00000001")
    label_map = cv2.imread(str(tmp_path / "out" / "preds" / found["label_map"]), -1)
    assert label_map.shape == (found["height"], found["width"]) == (61, 97)
    assert len(found["classes"]) == 150
    assert found["classes"][0]["name"] == "wall"
    for entry in found["classes"]:
        assert entry["share"] == pytest.approx((label_map == entry["label"]).mean())


def test_random_weights_come_with_a_warning(run, told, trained_detector, coco_folder, capsys):
    image = coco_folder / "val2017" / f"{1:012d}.jpg"
    assert run(trained_detector, image, "--score-thr", 0) == 0
    assert "warning: no checkpoint given" in capsys.readouterr().err
    found = told(f"{1:012d}")
    classes = CocoDataset.METAINFO["classes"]
    assert found["class_names"] == [classes[label] for label in found["labels"]]


@pytest.fixture
def odd_images(tmp_path) -> Path:
    """Images that are far too narrow, and a good one that comes last."""
    folder = tmp_path / "odd"
    folder.mkdir()
    shapes = {"a": (3, 700), "b": (2000, 10), "c": (40, 60)}
    for name, shape in shapes.items():
        pixels = np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)
        (folder / f"{name}.jpg").write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    return folder


@pytest.mark.parametrize("kind", ["detector", "segmentor"])
def test_pictures_that_cannot_be_drawn_are_warnings(
    run, kind, request, odd_images, tmp_path, capsys
):
    trained = request.getfixturevalue(f"trained_{kind}")
    in_its_place = tmp_path / "out" / "vis" / "b.jpg"
    in_its_place.mkdir(parents=True)
    options = ["--full-size", "--score-thr", 0]
    assert run(trained, trained.checkpoint, odd_images, *options) == 0
    predictions = [path.name for path in (tmp_path / "out" / "preds").glob("*.json")]
    assert sorted(predictions) == ["a.json", "b.json", "c.json"]
    shapes = [cv2.imread(str(tmp_path / "out" / "vis" / name)).shape for name in ("a.jpg", "c.jpg")]
    assert shapes == [(15, 3500, 3), (400, 600, 3)]
    assert f"warning: no picture of {odd_images}/b.jpg: UnwritableError" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--tile", "2000"]])
def test_images_of_which_nothing_is_left_are_named(
    run, trained_detector, odd_images, tmp_path, capsys, options
):
    """Resized to 64 pixels at most, two of them have no width."""
    assert run(trained_detector, trained_detector.checkpoint, odd_images, *options) == 2
    error = capsys.readouterr().err
    assert f"error: 2 of 3 images: image {odd_images}/a.jpg is too narrow" in error
    predictions = [path.name for path in (tmp_path / "out" / "preds").glob("*.json")]
    assert sorted(predictions) == ["c.json"]


def test_coco_results_are_those_of_a_test(run, test_tool, trained_detector, coco_folder, tmp_path):
    """pycocotools evaluates the file; the score threshold is of pictures alone."""
    truth = coco_folder / "annotations" / "instances_val2017.json"
    arguments = [trained_detector.checkpoint, coco_folder / "val2017", "--format", "coco"]
    assert run(trained_detector, *arguments, "--coco-annotations", truth) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"vis", "predictions.json"}
    coco = COCO(truth)
    loaded = coco.loadRes(str(tmp_path / "out" / "predictions.json"))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(coco, loaded, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        expected = trained_detector.metrics[f"coco/{kind}_mAP"]
        assert evaluation.stats[0] == pytest.approx(expected, abs=5e-4)
    dump = tmp_path / "tested.pkl"
    command = [trained_detector.config, trained_detector.checkpoint, "--out", dump]
    options = ["--work-dir", tmp_path / "work"]
    assert test_tool.main(list(map(str, [*command, *options]))) == 0
    tested = {each["img_id"]: each["pred_instances"] for each in pickle.loads(dump.read_bytes())}
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert {entry["image_id"] for entry in entries} == tested.keys()
    for image_id, expected in tested.items():
        found = [entry for entry in entries if entry["image_id"] == image_id]
        scores = [entry["score"] for entry in found]
        np.testing.assert_array_equal(scores, expected["scores"])
        corners = expected["bboxes"].numpy()
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        np.testing.assert_array_equal([entry["bbox"] for entry in found], sides)
        masks = [entry["segmentation"]["counts"] for entry in found]
        assert masks == [mask["counts"].decode() for mask in expected["masks"]]


def test_coco_results_are_of_objects_in_images(run, trained_segmentor, capsys, tmp_path):
    image, clip = tmp_path / "a.png", tmp_path / "a.mp4"
    image.touch()
    clip.touch()
    assert run(trained_segmentor, image, "--format", "coco") == 2
    assert "error: --format coco is of objects" in capsys.readouterr().err


def test_addresses_and_predictions_alone(run, trained_segmentor, ade20k_folder, tmp_path, capsys):
    images = ade20k_folder / "images" / "training"
    names = ["ADE_train_00000001", "ADE_train_00000002"]
    with served(images) as url:
        inputs = [f"{url}/{name}.jpg?secret" for name in names] + [images / f"{names[0]}.jpg"]
        arguments = [trained_segmentor.checkpoint, *inputs, f"{url}/missing.jpg", "--no-pictures"]
        assert run(trained_segmentor, *arguments) == 2
    error = capsys.readouterr().err
    assert f"error: 1 of 4 images: image {url}/missing.jpg: the server answers 404" in error
    found = {path.name: path for path in (tmp_path / "out").rglob("*.png")}
    assert len(found) == len(list((tmp_path / "out").rglob("*.json"))) - 1 == 2
    assert not list((tmp_path / "out").rglob("*secret*"))
    assert not list((tmp_path / "out").rglob("*.jpg"))


@pytest.mark.parametrize("options", [[], ["--full-size"], ["--tile", "40"]])
def test_config_of_classes(run, told, trained_detector, coco_folder, tmp_path, options):
    config = write_pure_python_config(tmp_path / "pure.py", trained_detector.config)
    image = coco_folder / "val2017" / f"{1:012d}.jpg"
    arguments = [trained_detector.checkpoint, image, "--score-thr", 0, *options]
    contents = []
    for trained in (trained_detector, trained_detector._replace(config=config)):
        assert run(trained, *arguments) == 0
        contents.append(told(f"{1:012d}"))
    assert contents[0] == contents[1]


def test_cuda_graphs(run, random_segmentor, ade20k_folder, tmp_path, monkeypatch):
    """Images of one size, one after the other, give what they give without."""
    image = ade20k_folder / "images" / "training" / "ADE_train_00000001.jpg"
    images = [shutil.copy(image, tmp_path / f"{n}.jpg") for n in range(4)]
    arguments = [random_segmentor.checkpoint, *images]
    with pytest.warns(UserWarning, match="without CUDA graphs: the images are on cpu"):
        assert run(random_segmentor, *arguments, "--cuda-graphs") == 0
    names = [f"preds/{n}.png" for n in range(4)]
    expected = [cv2.imread(str(tmp_path / "out" / name), -1) for name in names]
    monkeypatch.setattr(cuda, "Recorder", CpuRecorder)
    before = CpuRecorder.replayed
    assert run(random_segmentor, *arguments, "--cuda-graphs") == 0
    assert CpuRecorder.replayed == before + 3
    for name, label_map in zip(names, expected, strict=True):
        assert (cv2.imread(str(tmp_path / "out" / name), -1) == label_map).mean() > 0.99


def test_cuda_graphs_of_another_backbone(run, trained_segmentor, ade20k_folder, capsys):
    image = ade20k_folder / "images" / "training" / "ADE_train_00000001.jpg"
    assert run(trained_segmentor, trained_segmentor.checkpoint, image, "--cuda-graphs") == 2
    assert "error: --cuda-graphs: CUDA graphs are for backbones" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["epoch_1.pth"], "predict for"),
        (["a.jpg", "--batch-size", "0"], "--batch-size: must be at least 1, got 0"),
        (["0", "--camera-frames", "0"], "--camera-frames: must be at least 1, got 0"),
        (["a.jpg", "--coco-annotations", "a.json"], "--coco-annotations: give --format coco, too"),
        (["a.jpg", "--tile-overlap", "0.3"], "--tile-overlap: give --tile, too"),
        (["a.jpg", "--tile", "0"], "a side of at least 1 pixel, got 0"),
        (["a.jpg", "--tile", "64", "--tile-overlap", "1"], "0 to less than 1 of their side, got 1.0"),
    ],
)  # fmt: skip
def test_usage_errors(infer_tool, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        infer_tool.main(["config.py", *arguments])
    assert message in capsys.readouterr().err


def test_no_images(run, trained_detector, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    assert run(trained_detector, trained_detector.checkpoint, tmp_path / "empty") == 2
    assert f"error: {tmp_path / 'empty'}: no image or video found" in capsys.readouterr().err


def test_checkpoint_is_told_by_its_suffix(infer_tool):
    args = infer_tool.parse_args(["c.py", str(Path("x") / "epoch_1.pth"), "a.jpg", "b.jpg"])
    assert (args.checkpoint, args.inputs) == ("x/epoch_1.pth", ["a.jpg", "b.jpg"])
    args = infer_tool.parse_args(["c.py", "a.jpg", "b.jpg"])
    assert (args.checkpoint, args.inputs) == (None, ["a.jpg", "b.jpg"])
