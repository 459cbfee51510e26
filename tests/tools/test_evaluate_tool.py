"""flatten-det evaluate: the numbers of ``test``, the report, and one-line errors."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from fixtures import write_detector_config
from mmdet.models.detectors.base import BaseDetector
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData
from shrink import CONFIGS, shrunk
from tool_modules import forget_named_instances

from flatten_det.commands.evaluate import main

PANOPTIC = CONFIGS / "mask2former/mask2former_flatten-swin-t_8xb2-lsj-50e_coco-panoptic.py"


@MODELS.register_module()
class NearlyRight(BaseDetector):
    """Finds what is annotated, beside it now and then, or of another class."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor=data_preprocessor)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def loss(self, batch_inputs, batch_data_samples):
        raise NotImplementedError

    def extract_feat(self, batch_inputs):
        raise NotImplementedError

    def _forward(self, batch_inputs, batch_data_samples=None):
        raise NotImplementedError

    def predict(self, batch_inputs, batch_data_samples):
        for sample in batch_data_samples:
            truth = sample.gt_instances
            random = np.random.default_rng(sample.img_id)
            count = len(truth)
            shift = torch.tensor(random.normal(0, 3, (count, 4)), dtype=torch.float32)
            masks = truth.masks.to_ndarray()
            masks = [np.roll(mask, random.integers(0, 5), axis=1) for mask in masks]
            masks = np.stack(masks) if count else np.zeros((0, *sample.ori_shape))
            other = torch.tensor(random.random(count) < 0.5).long()
            sample.pred_instances = InstanceData(
                bboxes=truth.bboxes + shift,
                labels=(truth.labels + other) % 80,
                scores=torch.tensor(random.uniform(0.2, 1, count), dtype=torch.float32),
                masks=torch.tensor(masks, dtype=torch.bool),
            )
        return batch_data_samples


class Prepared(NamedTuple):
    config: Path
    checkpoint: Path


@pytest.fixture
def nearly_right(coco_folder, tmp_path) -> Prepared:
    config = write_detector_config(tmp_path / "nearly-right.py", coco_folder)
    config.write_text(
        f"{config.read_text()}\nmodel = dict(_delete_=True, type='NearlyRight', "
        "data_preprocessor=dict(type='DetDataPreprocessor'))\n"
        f"work_dir = {str(tmp_path / 'run')!r}\n"
    )
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "nearly-right.pth")
    return Prepared(config, tmp_path / "nearly-right.pth")


@pytest.fixture
def own_data(nearly_right, coco_folder, tmp_path) -> Path:
    """A copy of the data, which the config takes then."""
    data = shutil.copytree(coco_folder, tmp_path / "report")
    text = nearly_right.config.read_text().replace(str(coco_folder), str(data))
    nearly_right.config.write_text(text)
    return data


@pytest.fixture
def evaluate(tmp_path):
    """Runs the command; returns its exit code and ``report.json``, if it has written it."""

    def run(*args) -> tuple[int, dict | None]:
        forget_named_instances()
        out = tmp_path / "report"
        code = main(["--worst", "1", *map(str, args), "--out-dir", str(out)])
        file = out / "report.json"
        return code, json.loads(file.read_text()) if file.exists() else None

    return run


def metrics_of_test(test_tool, prepared, tmp_path, capsys, *options: str) -> dict[str, float]:
    """The metrics that ``flatten-det test`` prints."""
    capsys.readouterr()
    args = [str(prepared.config), str(prepared.checkpoint), "--work-dir", str(tmp_path / "run")]
    test_tool.main([*args, *options])
    pairs = re.findall(r"^(\S+) +(-?\d+\.\d{4})$", capsys.readouterr().out, re.MULTILINE)
    return {name: float(value) for name, value in pairs}


AP_NAMES = dict(ap="mAP", ap50="mAP_50", ap75="mAP_75", ap_small="mAP_s", ap_medium="mAP_m")


def assert_same_ap(report: dict, metrics: dict[str, float]) -> None:
    """mmdet rounds to 3 digits, and has -1 where there is no object of a size."""
    for kind in ("bbox", "segm"):
        for ours, theirs in AP_NAMES.items():
            value = report[kind][ours]
            expected = metrics[f"coco/{kind}_{theirs}"]
            assert round(-1.0 if value is None else value, 3) == pytest.approx(expected, abs=1e-6)


def assert_complete(report: dict, folder: Path) -> None:
    """Every picture is on the page, and can be read."""
    page = (folder / "index.html").read_text()
    pictures = set(re.findall(r'src="([^"]+)"', page))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert pictures == files
    figures = ("classes", "curves", "confusion", "kinds")
    assert files >= {f"{kind}_{figure}.png" for kind in ("bbox", "segm") for figure in figures}
    assert all(cv2.imread(str(folder / name)) is not None for name in files)
    assert [entry["picture"] for entry in report["worst"]] == ["worst/01.png", "worst/02.png"]
    errors = [entry["errors"] for entry in report["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert len(report["segm"]["per_class"]) == 80
    assert np.array(report["segm"]["confusion"]).shape == (81, 81)


def test_ap_is_that_of_test(evaluate, test_tool, nearly_right, tmp_path, capsys):
    dump = tmp_path / "dump.pkl"
    metrics = metrics_of_test(test_tool, nearly_right, tmp_path, capsys, "--out", str(dump))
    code, report = evaluate(nearly_right.config, nearly_right.checkpoint, "--worst", 2)
    assert code == 0
    assert_same_ap(report, metrics)
    assert_complete(report, tmp_path / "report")
    assert 0.1 < report["bbox"]["ap"] < 0.9
    assert 0.1 < report["segm"]["ap"] < 0.9
    assert sum(report["segm"]["errors"].values()) > 0
    assert report["segm"]["objects"] == 6
    out = capsys.readouterr().out
    assert "Masks: AP" in out
    assert out.splitlines()[-1].startswith("report: ")
    # The same of what test has written, and of COCO's format.
    code, of_dump = evaluate(nearly_right.config, "--predictions", dump, "--worst", 2)
    assert code == 0
    kinds = ("bbox", "segm", "worst")
    assert {kind: of_dump[kind] for kind in kinds} == {kind: report[kind] for kind in kinds}


def test_a_detector_that_found_nothing(evaluate, nearly_right, tmp_path):
    file = tmp_path / "none.json"
    file.write_text("[]")
    code, report = evaluate(nearly_right.config, "--predictions", file)
    assert code == 0
    assert report["bbox"]["ap"] == 0
    assert report["bbox"]["errors"]["missed"] == 6
    assert report["segm"]["gain_in_ap50"]["missed"] == 1


def coco_results(coco_folder: Path) -> list[dict]:
    """The truth itself, with masks as run lengths."""
    content = json.loads((coco_folder / "annotations/instances_val2017.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    return [{key: each[key] for key in keys} | {"score": 0.9} for each in content["annotations"]]


def test_cocos_results(evaluate, nearly_right, coco_folder, tmp_path, capsys):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(coco_results(coco_folder)))
    code, report = evaluate(nearly_right.config, "--predictions", file)
    assert code == 0
    assert report["bbox"]["ap"] == pytest.approx(1)
    # On the crowd it is no error.
    assert sum(report["bbox"]["errors"].values()) == 0
    assert report["worst"] == []
    # There are no masks, which is said.
    assert "segm" not in report
    assert "segm is not analysed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"image_id": 99}, "result 1 has the image_id 99, which is not in the annotations"),
        ({"category_id": "\x1b[2J"}, "has the category_id"),
        ({"score": float("nan")}, "has no score that is a number"),
        ({"bbox": [1, 2, float("inf"), 3]}, "has no bbox of four numbers"),
        ({"bbox": [1, 2, -3, 3]}, "has no bbox of four numbers"),
        ({"segmentation": {"size": [9, 9], "counts": "a"}}, "no run lengths of its image's size"),
        ({"segmentation": {"size": [97, 61], "counts": [5, -1]}}, "is no run lengths"),
        ({"segmentation": {"size": [97, 61], "counts": "0" * 50}}, "is no run lengths"),
    ],
)
def test_results_that_do_not_fit(
    evaluate, nearly_right, coco_folder, tmp_path, capsys, fields, reason
):
    file, results = tmp_path / "results.json", coco_results(coco_folder)
    results[1] |= fields
    file.write_text(json.dumps(results))
    code, report = evaluate(nearly_right.config, "--predictions", file)
    error = capsys.readouterr().err
    assert (code, report) == (2, None)
    assert reason in error
    assert error.count("\n") == 1
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b"{", "is not valid JSON"),
        ("a.json", b"{}", "holds no list"),
        ("a.pkl", b"no pickle", "cannot be read"),
        ("a.pkl", pickle.dumps([]), "holds no list of predictions"),
        ("a.pkl", pickle.dumps([{"img_id": 1}]), "entry 0 is no prediction"),
    ],
)
def test_files_that_are_no_predictions(
    evaluate, nearly_right, tmp_path, capsys, name, content, reason
):
    file = tmp_path / name
    file.write_bytes(content)
    assert evaluate(nearly_right.config, "--predictions", file) == (2, None)
    assert reason in capsys.readouterr().err


def test_annotations_that_are_not_complete(
    evaluate, nearly_right, own_data, coco_folder, tmp_path, capsys
):
    file = own_data / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    (tmp_path / "results.json").write_text(json.dumps(coco_results(coco_folder)))
    del content["annotations"][0]["iscrowd"]
    file.write_text(json.dumps(content))
    code, _ = evaluate(nearly_right.config, "--predictions", tmp_path / "results.json")
    assert code == 2
    assert "cannot be compared (KeyError: 'iscrowd'): flatten-det check" in capsys.readouterr().err


def test_broken_image_is_left_out_and_named(
    evaluate, test_tool, nearly_right, own_data, tmp_path, capsys
):
    """The numbers are those of ``test`` again, and the report is written."""
    image = own_data / "val2017/000000000002.jpg"
    image.write_bytes(b"no image")
    dump = tmp_path / "dump.pkl"
    metrics = metrics_of_test(test_tool, nearly_right, tmp_path, capsys, "--out", str(dump))
    code, report = evaluate(nearly_right.config, nearly_right.checkpoint)
    assert code == 2
    assert (
        f"error: 1 of 3 images, without which the metrics are: image {image}"
        in capsys.readouterr().err
    )
    assert_same_ap(report, metrics)
    assert report["images"] == 2
    image.with_name("000000000003.jpg").unlink()
    code, of_dump = evaluate(nearly_right.config, "--predictions", dump, "--worst", 3)
    assert code == 0
    (unread,) = [entry for entry in of_dump["worst"] if "003.jpg" in entry["image"]]
    assert "picture" not in unread
    error = capsys.readouterr().err
    assert "1 images have no entry in the file of predictions" in error
    assert "no picture: image" in error
    assert of_dump["segm"] == report["segm"]


def test_segmentor(evaluate, test_tool, random_segmentor, tmp_path, capsys):
    metrics = metrics_of_test(test_tool, random_segmentor, tmp_path, capsys)
    options = ["--worst", 3, "--cfg-options", f"work_dir={tmp_path / 'run'}"]
    code, report = evaluate(random_segmentor.config, random_segmentor.checkpoint, *options)
    assert code == 0
    for ours, theirs in {"accuracy": "aAcc", "mean_iou": "mIoU", "mean_accuracy": "mAcc"}.items():
        assert round(100 * report[ours], 2) == pytest.approx(metrics[theirs], abs=1e-6)
    assert report["images"] == 3
    assert len(report["worst"]) == 3
    wrong = [entry["wrong"] for entry in report["worst"]]
    assert wrong == sorted(wrong, reverse=True)
    page = (tmp_path / "report/index.html").read_text()
    assert set(re.findall(r'src="([^"]+)"', page)) == {
        "classes.png",
        "confusion.png",
        *(f"worst/0{n}.png" for n in (1, 2, 3)),
    }


@pytest.mark.slow
def test_panoptic(evaluate, test_tool, coco_folder, tmp_path, capsys):
    cfg = shrunk(Config.fromfile(PANOPTIC), coco_folder, tmp_path / "run")
    config, checkpoint = tmp_path / "panoptic.py", tmp_path / "panoptic.pth"
    cfg.dump(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, checkpoint)
    metrics = metrics_of_test(test_tool, Prepared(config, checkpoint), tmp_path, capsys)
    code, report = evaluate(config, checkpoint)
    assert code == 0
    for group, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st")):
        for key in ("pq", "sq", "rq"):
            expected = metrics[f"coco_panoptic/{key.upper()}{suffix}"]
            assert 100 * report[group][key] == pytest.approx(expected, abs=1e-3)
    truth = json.loads((coco_folder / "annotations/panoptic_val2017.json").read_text())
    segments = [part for each in truth["annotations"] for part in each["segments_info"]]
    counted = [entry["matched"] + entry["missed"] for entry in report["per_class"]]
    assert sum(counted) == sum(not part["iscrowd"] for part in segments)
    by_image = [each["missed"] + each["wrong"] for each in report["per_image"]]
    assert by_image == sorted(by_image, reverse=True)
    assert sum(by_image) == sum(e["missed"] + e["wrong"] for e in report["per_class"])
    assert len(report["per_image"]) == 3
    assert evaluate(config, "--predictions", tmp_path / "a.json")[0] == 2
    assert "--predictions is for detection" in capsys.readouterr().err


def test_metric_that_cannot_be_analysed(evaluate, nearly_right, capsys):
    options = ["--cfg-options", "test_evaluator.type=VOCMetric"]
    assert evaluate(nearly_right.config, nearly_right.checkpoint, *options) == (2, None)
    assert "its test_evaluator (VOCMetric) is none that can be analysed" in capsys.readouterr().err


def test_images_are_not_overwritten(evaluate, nearly_right, own_data, capsys):
    """The pictures' folder may be that of the images, by chance."""
    (own_data / "val2017").rename(own_data / "worst")
    file = own_data / "annotations/instances_val2017.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        name = f"{image['id']:02d}.png"
        (own_data / "worst" / image["file_name"]).rename(own_data / "worst" / name)
        image["file_name"] = name
    file.write_text(json.dumps(content))
    changed = "test_dataloader.dataset.data_prefix.img=worst/"
    code, _ = evaluate(nearly_right.config, nearly_right.checkpoint, "--cfg-options", changed)
    assert code == 2
    assert "would overwrite the input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["c.py"], "give either a checkpoint or --predictions FILE"),
        (["c.py", "a.pth", "--predictions", "b.json"], "give either a checkpoint"),
        (["c.py", "a.pth", "--worst", "-1"], "must be 0 or more"),
        (["c.py", "a.pth", "--score-threshold", "nan"], "must be from 0 to 1"),
    ],
)
def test_usage_errors(args, reason, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert reason in capsys.readouterr().err
